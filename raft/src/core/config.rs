//! The settings of one member of a group. Must-match means: the same on every member.

use super::types::NodeId;

/// Settings of the core. Times are in ticks; the owner decides how long a tick is.
#[derive(Debug, Clone)]
pub struct Config {
    /// This member. Not 0.
    pub id: NodeId,
    /// What tells this member's disk from any other under its id (see [`Member`](super::Member)); 0: not known, and then a disk
    /// that was lost is not noticed. Default 0.
    pub incarnation: u64,
    /// Silence of the leader, in ticks, after which a follower may campaign: each time it waits a random
    /// number of ticks in `election_ticks..2 * election_ticks`. A leader that hears from no quorum for
    /// `election_ticks` steps down. Must match; must exceed `heartbeat_ticks`, in practice ten-fold. Default 10.
    pub election_ticks: u32,
    /// Ticks between two heartbeats of a leader. At least 1. Default 1.
    pub heartbeat_ticks: u32,
    /// Bytes of commands in one append message; a single larger entry is still sent, alone. 0 sends every
    /// entry by itself. Default 1 MiB.
    pub append_bytes_max: usize,
    /// Append messages with entries that may be under way to one follower before the leader waits for an
    /// acknowledgement. At least 1. Default 256.
    pub inflight_messages_max: usize,
    /// Bytes of commands that may be under way to one follower; the message that passes the limit is still
    /// sent. With a round trip of 10 ms the default of 16 MiB allows 1.6 GB/s. At least 1.
    pub inflight_bytes_max: usize,
}

/// Why a [`Config`] is refused. The caller is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The id 0 is reserved for "nobody".
    #[error("node id 0 is not allowed")]
    ZeroId,
    /// A value is below what makes sense.
    #[error("{field} is {value}, the least is {least}")]
    TooSmall {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The smallest allowed value.
        least: u64,
    },
}

impl Config {
    /// The defaults for member `id`.
    pub fn new(id: NodeId) -> Config {
        Config {
            id,
            incarnation: 0,
            election_ticks: 10,
            heartbeat_ticks: 1,
            append_bytes_max: 1 << 20,
            inflight_messages_max: 256,
            inflight_bytes_max: 16 << 20,
        }
    }

    /// Checks every field and the rules between them.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.id == 0 {
            return Err(ConfigError::ZeroId);
        }
        let at_least = |field, value: u64, least| match value >= least {
            true => Ok(()),
            false => Err(ConfigError::TooSmall { field, value, least }),
        };
        at_least("heartbeat_ticks", self.heartbeat_ticks.into(), 1)?;
        at_least("election_ticks", self.election_ticks.into(), u64::from(self.heartbeat_ticks) + 1)?;
        at_least("inflight_messages_max", self.inflight_messages_max as u64, 1)?;
        at_least("inflight_bytes_max", self.inflight_bytes_max as u64, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Config)) -> Result<(), ConfigError> {
        let mut config = Config::new(1);
        change(&mut config);
        config.validate()
    }

    #[test]
    fn each_rule_is_checked() {
        assert_eq!(check(|_| ()), Ok(()));
        assert_eq!(check(|c| c.id = 0), Err(ConfigError::ZeroId));
        for (change, name) in [
            (
                Box::new(|c: &mut Config| c.heartbeat_ticks = 0) as Box<dyn FnOnce(&mut Config)>,
                "heartbeat_ticks",
            ),
            (Box::new(|c| c.election_ticks = 1), "election_ticks"),
            (Box::new(|c| c.inflight_messages_max = 0), "inflight_messages_max"),
            (Box::new(|c| c.inflight_bytes_max = 0), "inflight_bytes_max"),
        ] {
            assert!(matches!(check(change), Err(ConfigError::TooSmall { field, .. }) if field == name));
        }
    }
}
