//! Where a key stands in the store: SipHash-1-3 of the key, keyed per cluster.
//!
//! It is written out here because positions are part of the protocol: scan cursors and snapshots must mean
//! the same on every replica and in every release, which `std`'s hasher does not promise. The key is the
//! cluster's secret enough that a client cannot pick keys which all fall into one bucket.

/// Positions have this many bits: every client, also one that keeps numbers as doubles, carries a scan cursor
/// of this size unharmed.
pub(super) const POSITION_BITS: u32 = 48;

/// The position of `bytes` under the cluster's `hash_key`.
pub(super) fn position(hash_key: u128, bytes: &[u8]) -> u64 {
    siphash_1_3(hash_key as u64, (hash_key >> 64) as u64, bytes) >> (u64::BITS - POSITION_BITS)
}

/// SipHash with one round per block and three at the end (Aumasson and Bernstein, 2012).
pub(crate) fn siphash_1_3(key0: u64, key1: u64, bytes: &[u8]) -> u64 {
    let mut state = [
        key0 ^ 0x736f_6d65_7073_6575,
        key1 ^ 0x646f_7261_6e64_6f6d,
        key0 ^ 0x6c79_6765_6e65_7261,
        key1 ^ 0x7465_6462_7974_6573,
    ];
    let (blocks, tail) = bytes.as_chunks::<8>();
    for block in blocks {
        absorb(&mut state, u64::from_le_bytes(*block));
    }
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    last[7] = bytes.len() as u8;
    absorb(&mut state, u64::from_le_bytes(last));
    state[2] ^= 0xff;
    for _ in 0..3 {
        round(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn absorb(state: &mut [u64; 4], block: u64) {
    state[3] ^= block;
    round(state);
    state[0] ^= block;
}

fn round([v0, v1, v2, v3]: &mut [u64; 4]) {
    *v0 = v0.wrapping_add(*v1);
    *v2 = v2.wrapping_add(*v3);
    *v1 = v1.rotate_left(13) ^ *v0;
    *v3 = v3.rotate_left(16) ^ *v2;
    *v0 = v0.rotate_left(32);
    *v2 = v2.wrapping_add(*v1);
    *v0 = v0.wrapping_add(*v3);
    *v1 = v1.rotate_left(17) ^ *v2;
    *v3 = v3.rotate_left(21) ^ *v0;
    *v2 = v2.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher};

    use super::*;

    #[test]
    fn agrees_with_the_hasher_of_std() {
        // std's default hasher happens to be SipHash-1-3 with a key of zero.
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 0..=bytes.len() {
            let mut hasher = DefaultHasher::new();
            hasher.write(&bytes[..length]);
            assert_eq!(siphash_1_3(0, 0, &bytes[..length]), hasher.finish(), "{length} bytes");
        }
    }

    #[test]
    fn positions_are_fixed_for_all_time() {
        assert_eq!(position(0, b""), 0xd1fb_a762_150c);
        assert_ne!(position(0, b"a"), position(1, b"a"));
        assert_ne!(position(0, b"a"), position(1 << 64, b"a"));
    }
}
