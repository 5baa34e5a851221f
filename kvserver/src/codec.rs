//! The byte-level pieces shared by log entries and snapshots: variable-length integers and length-prefixed
//! byte strings. A length found in the input is never trusted with an allocation of that size.

use std::io::{self, Read};

use bytes::{Buf, BufMut, Bytes};

/// A varint of a `u64` takes at most this many bytes.
const VARINT_BYTES_MAX: usize = 10;

/// How much may be reserved on the word of a length field alone.
const TRUSTED_BYTES_MAX: usize = 64 * 1024;

/// Appends `value` in LEB128.
pub(crate) fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends a length and that many bytes.
pub(crate) fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Decodes a varint from a source of bytes; `None` when it is not a minimal `u64`.
fn decode_varint<E>(mut next: impl FnMut() -> Result<u8, E>) -> Result<Option<u64>, E> {
    let mut value = 0_u64;
    for index in 0..VARINT_BYTES_MAX {
        let byte = next()?;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte holds only the 64th bit.
        if index == VARINT_BYTES_MAX - 1 && bits > 1 {
            return Ok(None);
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            // One value has one encoding, so that equal states are equal bytes.
            let minimal = byte != 0 || index == 0;
            return Ok(minimal.then_some(value));
        }
    }
    Ok(None)
}

/// Takes a varint off the front; `None` when the input is too short or not a minimal encoding.
pub(crate) fn take_varint(input: &mut Bytes) -> Option<u64> {
    decode_varint(|| if input.has_remaining() { Ok(input.get_u8()) } else { Err(()) }).ok().flatten()
}

/// Takes a length-prefixed byte string off the front, sharing the input's memory.
pub(crate) fn take_bytes(input: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(take_varint(input)?).ok()?;
    (length <= input.len()).then(|| input.split_to(length))
}

/// Reads a varint. A malformed one is [`io::ErrorKind::InvalidData`].
pub(crate) fn read_varint(input: &mut impl Read) -> io::Result<u64> {
    decode_varint(|| {
        let mut byte = [0];
        input.read_exact(&mut byte).map(|()| byte[0])
    })?
    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed integer"))
}

/// Reads a length-prefixed byte string of at most `bytes_max` bytes.
pub(crate) fn read_bytes(input: &mut impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let length = read_varint(input)?;
    if length > bytes_max {
        let message = format!("a length of {length} bytes where at most {bytes_max} are possible");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut bytes = Vec::with_capacity((length as usize).min(TRUSTED_BYTES_MAX));
    if input.take(length).read_to_end(&mut bytes)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    fn take(bytes: &[u8]) -> Option<u64> {
        take_varint(&mut Bytes::copy_from_slice(bytes))
    }

    proptest! {
        #[test]
        fn varints_round_trip(value in any::<u64>(), shift in 0_u32..64) {
            let value = value >> shift;
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            let mut reader = &out[..];
            prop_assert_eq!(read_varint(&mut reader).unwrap(), value);
            prop_assert!(reader.is_empty());
            prop_assert_eq!(take(&out), Some(value));
        }
    }

    #[test]
    fn malformed_varints_are_refused() {
        assert_eq!(take(b""), None);
        assert_eq!(take(b"\x80"), None, "truncated");
        assert_eq!(take(b"\x80\x00"), None, "zero in two bytes");
        assert_eq!(take(&[0xff; 11]), None, "too long");
        assert_eq!(take(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), Some(u64::MAX));
        assert_eq!(take(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), None, "65 bits");
    }

    #[test]
    fn a_length_is_not_an_allocation() {
        let mut out = BytesMut::new();
        put_varint(&mut out, 1 << 40);
        out.put_slice(b"short");
        assert_eq!(take_bytes(&mut out.clone().freeze()), None);
        assert_eq!(read_bytes(&mut &out[..], u64::MAX).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_bytes(&mut &out[..], 1 << 30).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
