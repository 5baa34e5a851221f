//! Sums over a node's whole state, taken by all nodes at the same entry of the log: replicas that have diverged, by a bug or a broken machine, give
//! different ones.

use std::io::{self, Write};

use serde_json::{Value, json};
use squall_raft::core::types::Index;

use crate::machine::MachineView;

/// Other activities get their turn after so many bytes.
const BYTES_BETWEEN_TURNS: usize = 256 * 1024;

/// A sum over the state after one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Check {
    /// Which check it answers.
    pub number: u64,
    /// The entry after which the state was summed up.
    pub index: Index,
    /// CRC-32C of the state, the one that its snapshot ends with.
    pub checksum: u32,
    /// The length of that.
    pub bytes: u64,
}

impl Check {
    /// Sums up a state.
    ///
    /// # Blocking
    /// Neither the thread nor the fiber, but it takes a second for each gigabyte, and gives way to others meanwhile.
    pub fn of(number: u64, index: Index, view: MachineView) -> Self {
        let mut sum = Sum { last_write: [0; 4], bytes: 0, since_turn: 0 };
        view.write_snapshot(&mut sum).expect("adding up cannot fail");
        Self { number, index, checksum: u32::from_le_bytes(sum.last_write), bytes: sum.bytes }
    }

    pub fn to_json(self) -> Value {
        json!({ "number": self.number, "index": self.index, "checksum": format!("{:08x}", self.checksum), "bytes": self.bytes })
    }
}

struct Sum {
    /// In the end the snapshot's checksum. A sum over all bytes, that one among them, would be the same for every state.
    last_write: [u8; 4],
    bytes: u64,
    since_turn: usize,
}

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.last_write = bytes.last_chunk().copied().unwrap_or_default();
        self.bytes += bytes.len() as u64;
        self.since_turn += bytes.len();
        if self.since_turn >= BYTES_BETWEEN_TURNS {
            self.since_turn = 0;
            std::thread::yield_now();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{KvMachine, MachineOptions, Proposal};
    use crate::session::SessionLimits;

    #[test]
    fn different_states_have_different_sums_and_equal_ones_the_same() {
        let sum = |lines: &[&[&str]]| {
            let mut machine =
                KvMachine::new(MachineOptions { hash_key: 1, sessions: SessionLimits::DEFAULT });
            let words = |line: &&[&str]| line.iter().map(|word| (*word).to_owned().into()).collect();
            let commands = lines.iter().map(words).collect();
            let proposal = Proposal { session: None, now_ms: 1, value_bytes_max: 100, commands };
            machine.apply(&proposal.encode()).unwrap();
            Check::of(1, 2, machine.view())
        };
        assert_eq!(sum(&[&["SET", "a", "1"]]), sum(&[&["SET", "a", "1"]]));
        assert_ne!(sum(&[&["SET", "a", "1"]]).checksum, sum(&[&["SET", "a", "2"]]).checksum);
        assert_ne!(sum(&[&["SET", "a", "1"]]).checksum, sum(&[]).checksum);
    }
}
