//! Known mistakes, for the simulation to find: each is one that real systems have shipped.
//!
//! Only a build with the feature `planted-bugs` can make one, and only while the environment names it; in any other build [`planted`] is
//! false, and the compiler removes what depends on it. `sim/README.md` says what it takes to find each.

/// The variable that names the mistake to be made.
pub const VARIABLE: &str = "SQUALL_PLANTED_BUG";

macro_rules! mistakes {
    ($($(#[doc = $text:literal])+ $name:ident = $word:literal,)*) => {
        /// A mistake.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mistake {
            $($(#[doc = $text])+ $name,)*
        }

        impl Mistake {
            /// All of them.
            pub const ALL: &[Mistake] = &[$(Mistake::$name),*];

            /// Its name, as [`VARIABLE`] has it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Mistake::$name => $word,)*
                }
            }

            /// What is done wrong.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Mistake::$name => concat!($($text),+).trim_ascii(),)*
                }
            }
        }
    };
}

mistakes! {
    /// A new leader answers reads before it has committed an entry of its own term.
    EarlyRead = "early-read",
    /// A leader answers reads without asking anybody whether it still leads.
    ReadWithoutQuorum = "read-without-quorum",
    /// A read is confirmed by answers to questions that were asked before it came.
    ReadJoinsOldRound = "read-joins-old-round",
    /// A read is answered as soon as it is confirmed, though the state is not there yet.
    ReadBeforeApplied = "read-before-applied",
    /// A leader commits entries of earlier terms by counting (the Raft paper's figure 8).
    CommitByCount = "commit-by-count",
    /// A leader counts itself before its own disk has the entry.
    LeaderCountsItselfEarly = "leader-counts-itself-early",
    /// A leader tells a follower to commit what the follower may not have.
    HeartbeatCommitsUnmatched = "heartbeat-commits-unmatched",
    /// A follower acknowledges entries before its disk has them.
    AckBeforeSync = "ack-before-sync",
    /// A follower votes before its disk has the vote.
    VoteBeforeSync = "vote-before-sync",
    /// A candidate leads before its disk has its vote for itself.
    OwnVoteBeforeSync = "own-vote-before-sync",
    /// Votes and terms are written only when there are entries to write.
    VotesNotPersisted = "votes-not-persisted",
    /// A follower votes for everybody who asks in a term.
    VoteTwice = "vote-twice",
    /// A follower votes for candidates that lack entries.
    VoteForShorterLog = "vote-for-shorter-log",
    /// Half of an even number, or one less than most of an odd one, decides.
    SmallQuorum = "small-quorum",
    /// A follower keeps its own entries where the leader's differ.
    KeepConflictingSuffix = "keep-conflicting-suffix",
    /// A follower takes entries without looking at what stands before them.
    NoPreviousCheck = "no-previous-check",
    /// A follower acknowledges all that it has, also what the leader did not ask about.
    AckOwnLog = "ack-own-log",
    /// A follower commits entries of an old leader that the message says nothing of.
    CommitBeyondMatch = "commit-beyond-match",
    /// The log is written but never synced.
    NoSync = "no-sync",
    /// A failed sync is tried again, and the second time it says that all is well.
    SyncRetried = "sync-retried",
    /// A log that was damaged where it had been synced is cut there, as if it had never been finished.
    CutCorruptMiddle = "cut-corrupt-middle",
    /// A log that starts anew behind a snapshot forgets whom it voted for.
    VoteLostOnInstall = "vote-lost-on-install",
    /// A new segment's name is not synced.
    NameNotSynced = "name-not-synced",
    /// A snapshot gets its name before its content is synced.
    SnapshotNotSynced = "snapshot-not-synced",
    /// The log is cut before the snapshot that replaces it is on disk.
    CutBeforeSnapshot = "cut-before-snapshot",
    /// A snapshot says that it has one entry more than it has.
    SnapshotIndexOffByOne = "snapshot-index-off-by-one",
    /// A restored snapshot has no sessions.
    SessionsLostInSnapshot = "sessions-lost-in-snapshot",
    /// A request that is repeated runs again.
    RepeatedRequestRuns = "repeated-request-runs",
    /// A request that comes after a later one of its session runs.
    StaleRequestRuns = "stale-request-runs",
    /// A node asks the next leader again for a write without a session, of which it does not know whether it was done.
    RetryWithoutSession = "retry-without-session",
    /// What a deposed leader had in its log is reported as certainly not executed.
    UncertainReportedAsRefused = "uncertain-reported-as-refused",
    /// Each replica looks at its own clock to see what has expired.
    ExpiryByOwnClock = "expiry-by-own-clock",
}

/// Whether the mistake is to be made.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn planted(mistake: Mistake) -> bool {
    std::env::var(VARIABLE).is_ok_and(|name| name == mistake.name())
}

/// Whether the mistake is to be made: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
#[inline(always)]
pub const fn planted(_: Mistake) -> bool {
    false
}
