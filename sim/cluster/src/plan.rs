//! What will go wrong in a run, and when: a list that is drawn from a seed, or written by hand, and that can be shortened and printed.
//!
//! A step is a line, such as `12.5s isolate leader for 3s`. The words are those of [`Fault`]'s variants.

use core::fmt;
use core::str::FromStr;
use squall_sim::Random;
use std::time::Duration;

/// Which node a step is about; the role is looked up when its time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// By its number, from 1.
    Node(u64),
    /// Whoever was elected last.
    Leader,
    /// The first that is not.
    Follower,
}

/// Something that goes wrong, for a time if it says so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// `kill NODE`: `kill -9`, wherever it waits.
    Kill(Target),
    /// `kill NODE after N calls`: in the middle of its Nth call from now.
    KillInCall(Target, u64),
    /// `unplug NODE for TIME`: the machine loses its power, and what was not synced.
    Unplug(Target, Duration),
    /// `unplug all for TIME`.
    UnplugAll(Duration),
    /// `pause NODE for TIME`: the program is held up, its clock and what arrives are not.
    Pause(Target, Duration),
    /// `isolate NODE for TIME`: no other node reaches it or is reached by it. Clients are.
    Isolate(Target, Duration),
    /// `mute NODE for TIME`: what it sends to other nodes does not arrive.
    Mute(Target, Duration),
    /// `deafen NODE for TIME`: what other nodes send to it does not arrive.
    Deafen(Target, Duration),
    /// `unlink A B for TIME`: two nodes do not reach each other, though both reach the others.
    Unlink(Target, Target, Duration),
    /// `scatter for TIME`: no node reaches any other.
    Scatter(Duration),
    /// `slow-links N ms for TIME`: everything takes so long.
    SlowLinks(u64, Duration),
    /// `lossy-links N percent for TIME`.
    LossyLinks(u64, Duration),
    /// `slow-disk NODE N times for TIME`.
    SlowDisk(Target, u64, Duration),
    /// `failing-syncs NODE for TIME`.
    FailingSyncs(Target, Duration),
    /// `failing-writes NODE for TIME`.
    FailingWrites(Target, Duration),
    /// `full-disk NODE for TIME`.
    FullDisk(Target, Duration),
    /// `hanging-disk NODE for TIME`: a sync that has begun does not end before.
    HangingDisk(Target, Duration),
    /// `failing-reads NODE for TIME`: it is killed, so that it reads what it has when it starts again.
    FailingReads(Target, Duration),
    /// `misdirected-reads NODE for TIME`: some reads get what stands elsewhere on the disk. It is killed, so that it reads.
    MisdirectedReads(Target, Duration),
    /// `rot NODE`: it is killed, and a bit of its log or of a snapshot is another one when it starts again.
    Rot(Target),
    /// `clock NODE AHEAD ms DRIFT ppm`: from then on.
    Clock(Target, i64, i64),
    /// `expect progress within TIME`: no fault; a write must succeed in this time, whatever is going on.
    ExpectProgress(Duration),
}

/// A fault and when it comes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Since the clients began.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

/// What kinds of faults a run may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// A few kinds of any sort, drawn anew for each seed.
    Swarm,
    /// Disks and power.
    Disk,
    /// Links.
    Net,
    /// Clocks, pauses and kills.
    Clock,
    /// None.
    Calm,
}

impl Profile {
    /// Those in which something goes wrong.
    pub const FAULTY: [Profile; 4] = [Profile::Swarm, Profile::Disk, Profile::Net, Profile::Clock];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Swarm => "swarm",
            Profile::Disk => "disk",
            Profile::Net => "net",
            Profile::Clock => "clock",
            Profile::Calm => "calm",
        }
    }
}

impl Profile {
    /// The kinds, by the numbers that `draw_fault` knows.
    fn kinds(self) -> &'static [u64] {
        match self {
            Profile::Swarm => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
            Profile::Disk => &[0, 1, 2, 3, 12, 13, 14, 15, 17, 18, 19, 20],
            Profile::Net => &[5, 6, 7, 8, 9, 10, 11],
            Profile::Clock => &[0, 1, 4, 16],
            Profile::Calm => &[],
        }
    }
}

/// Draws the faults of a run that lasts `length`, in a cluster of `nodes`.
pub fn draw(profile: Profile, nodes: u64, length: Duration, random: &mut Random) -> Vec<Step> {
    let mut kinds: Vec<u64> = profile.kinds().to_vec();
    if kinds.is_empty() {
        return Vec::new();
    }
    random.shuffle(&mut kinds);
    kinds.truncate(random.index(kinds.len().min(6)) + 1);
    let pause = random.duration(Duration::from_millis(400)..Duration::from_secs(8));
    let mut steps = Vec::new();
    let mut at = random.duration(Duration::ZERO..pause * 2);
    while at < length {
        let kind = *random.choice(&kinds);
        steps.push(Step { at, fault: draw_fault(kind, nodes, random) });
        at += random.duration(Duration::from_millis(50)..pause * 2);
    }
    steps
}

fn draw_fault(kind: u64, nodes: u64, random: &mut Random) -> Fault {
    let target = match random.below(3) {
        0 => Target::Leader,
        _ => Target::Node(random.below(nodes) + 1),
    };
    let other = Target::Node(random.below(nodes) + 1);
    // Too short for an election, about as long as one, or long enough for several.
    let longest = *random.choice(&[700, 2_500, 7_000]);
    let time = Duration::from_millis(random.below(longest) + 20);
    match kind {
        0 => Fault::Kill(target),
        1 => Fault::KillInCall(target, random.below(2_000)),
        2 => Fault::Unplug(target, time),
        3 => Fault::UnplugAll(time),
        4 => Fault::Pause(target, time),
        5 => Fault::Isolate(target, time),
        6 => Fault::Mute(target, time),
        7 => Fault::Deafen(target, time),
        8 => Fault::Unlink(target, other, time),
        9 => Fault::Scatter(time),
        10 => Fault::SlowLinks(random.below(150) + 1, time),
        11 => Fault::LossyLinks(random.below(40) + 1, time),
        12 => Fault::SlowDisk(target, random.below(1_000) + 1, time),
        13 => Fault::FailingSyncs(target, time),
        14 => Fault::FailingWrites(target, time),
        15 => Fault::FullDisk(target, time),
        17 => Fault::HangingDisk(target, time),
        18 => Fault::FailingReads(target, time),
        19 => Fault::MisdirectedReads(target, time),
        20 => Fault::Rot(target),
        _ => {
            let sign = if random.chance(0.5) { 1 } else { -1 };
            Fault::Clock(target, sign * random.below(100_000) as i64, sign * random.below(500) as i64)
        }
    }
}

struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Node(number) => write!(f, "node{number}"),
            Target::Leader => f.write_str("leader"),
            Target::Follower => f.write_str("follower"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: &Duration| Time(*time);
        match self {
            Fault::Kill(node) => write!(f, "kill {node}"),
            Fault::KillInCall(node, calls) => write!(f, "kill {node} after {calls} calls"),
            Fault::Unplug(node, long) => write!(f, "unplug {node} for {}", time(long)),
            Fault::UnplugAll(long) => write!(f, "unplug all for {}", time(long)),
            Fault::Pause(node, long) => write!(f, "pause {node} for {}", time(long)),
            Fault::Isolate(node, long) => write!(f, "isolate {node} for {}", time(long)),
            Fault::Mute(node, long) => write!(f, "mute {node} for {}", time(long)),
            Fault::Deafen(node, long) => write!(f, "deafen {node} for {}", time(long)),
            Fault::Unlink(one, other, long) => write!(f, "unlink {one} {other} for {}", time(long)),
            Fault::Scatter(long) => write!(f, "scatter for {}", time(long)),
            Fault::SlowLinks(ms, long) => write!(f, "slow-links {ms} ms for {}", time(long)),
            Fault::LossyLinks(percent, long) => write!(f, "lossy-links {percent} percent for {}", time(long)),
            Fault::SlowDisk(node, times, long) => {
                write!(f, "slow-disk {node} {times} times for {}", time(long))
            }
            Fault::FailingSyncs(node, long) => write!(f, "failing-syncs {node} for {}", time(long)),
            Fault::FailingWrites(node, long) => write!(f, "failing-writes {node} for {}", time(long)),
            Fault::FullDisk(node, long) => write!(f, "full-disk {node} for {}", time(long)),
            Fault::HangingDisk(node, long) => write!(f, "hanging-disk {node} for {}", time(long)),
            Fault::FailingReads(node, long) => write!(f, "failing-reads {node} for {}", time(long)),
            Fault::MisdirectedReads(node, long) => {
                write!(f, "misdirected-reads {node} for {}", time(long))
            }
            Fault::Rot(node) => write!(f, "rot {node}"),
            Fault::Clock(node, ahead, drift) => write!(f, "clock {node} {ahead} ms {drift} ppm"),
            Fault::ExpectProgress(limit) => write!(f, "expect progress within {}", time(limit)),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", Time(self.at), self.fault)
    }
}

/// A line of a scenario that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{line}` is not a step, such as `12.5s isolate leader for 3s`")]
pub struct NotAStep {
    line: String,
}

fn parse_time(word: &str) -> Option<Duration> {
    let (number, unit) = match word.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => (word.strip_suffix('s')?, 1.0),
    };
    let seconds = number.parse::<f64>().ok()? * unit;
    (0.0..1e6).contains(&seconds).then(|| Duration::from_micros((seconds * 1e6).round() as u64))
}

fn parse_target(word: &str) -> Option<Target> {
    match word {
        "leader" => Some(Target::Leader),
        "follower" => Some(Target::Follower),
        _ => word.strip_prefix("node")?.parse().ok().filter(|number| *number > 0).map(Target::Node),
    }
}

fn parse_step(line: &str) -> Option<Step> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (at, words) = words.split_first()?;
    let fault = match *words {
        ["kill", node] => Fault::Kill(parse_target(node)?),
        ["kill", node, "after", calls, "calls"] => {
            Fault::KillInCall(parse_target(node)?, calls.parse().ok()?)
        }
        ["unplug", "all", "for", time] => Fault::UnplugAll(parse_time(time)?),
        ["unplug", node, "for", time] => Fault::Unplug(parse_target(node)?, parse_time(time)?),
        ["pause", node, "for", time] => Fault::Pause(parse_target(node)?, parse_time(time)?),
        ["isolate", node, "for", time] => Fault::Isolate(parse_target(node)?, parse_time(time)?),
        ["mute", node, "for", time] => Fault::Mute(parse_target(node)?, parse_time(time)?),
        ["deafen", node, "for", time] => Fault::Deafen(parse_target(node)?, parse_time(time)?),
        ["unlink", one, other, "for", time] => {
            Fault::Unlink(parse_target(one)?, parse_target(other)?, parse_time(time)?)
        }
        ["scatter", "for", time] => Fault::Scatter(parse_time(time)?),
        ["slow-links", ms, "ms", "for", time] => Fault::SlowLinks(ms.parse().ok()?, parse_time(time)?),
        ["lossy-links", percent, "percent", "for", time] => {
            Fault::LossyLinks(percent.parse().ok()?, parse_time(time)?)
        }
        ["slow-disk", node, times, "times", "for", time] => {
            Fault::SlowDisk(parse_target(node)?, times.parse().ok()?, parse_time(time)?)
        }
        ["failing-syncs", node, "for", time] => Fault::FailingSyncs(parse_target(node)?, parse_time(time)?),
        ["failing-writes", node, "for", time] => Fault::FailingWrites(parse_target(node)?, parse_time(time)?),
        ["full-disk", node, "for", time] => Fault::FullDisk(parse_target(node)?, parse_time(time)?),
        ["hanging-disk", node, "for", time] => Fault::HangingDisk(parse_target(node)?, parse_time(time)?),
        ["failing-reads", node, "for", time] => Fault::FailingReads(parse_target(node)?, parse_time(time)?),
        ["misdirected-reads", node, "for", time] => {
            Fault::MisdirectedReads(parse_target(node)?, parse_time(time)?)
        }
        ["rot", node] => Fault::Rot(parse_target(node)?),
        ["expect", "progress", "within", time] => Fault::ExpectProgress(parse_time(time)?),
        ["clock", node, ahead, "ms", drift, "ppm"] => {
            Fault::Clock(parse_target(node)?, ahead.parse().ok()?, drift.parse().ok()?)
        }
        _ => return None,
    };
    Some(Step { at: parse_time(at)?, fault })
}

impl FromStr for Step {
    type Err = NotAStep;

    fn from_str(line: &str) -> Result<Self, NotAStep> {
        parse_step(line).ok_or_else(|| NotAStep { line: line.to_owned() })
    }
}

/// The steps of a scenario: a line each; what follows a `#` is for people.
///
/// # Errors
/// The first line that is no step.
pub fn parse(text: &str) -> Result<Vec<Step>, NotAStep> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(line).trim());
    lines.filter(|line| !line.is_empty()).map(str::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_can_be_written_and_read() {
        let mut random = Random::new(1, "plans");
        let mut kinds = std::collections::BTreeSet::new();
        for _ in 0..300 {
            for step in draw(Profile::Swarm, 3, Duration::from_secs(60), &mut random) {
                // Written in milliseconds.
                let step = Step { at: Duration::from_millis(step.at.as_millis() as u64), ..step };
                assert_eq!(step.to_string().parse(), Ok(step));
                kinds.insert(step.fault.to_string().split(' ').next().unwrap_or("").to_owned());
            }
        }
        assert_eq!(kinds.len(), 19, "{kinds:?}");
        assert!(draw(Profile::Calm, 3, Duration::from_secs(60), &mut random).is_empty());
    }

    #[test]
    fn a_scenario_may_have_comments_and_must_make_sense() {
        let expectation: Step = "2s expect progress within 5s".parse().unwrap();
        assert_eq!(expectation.to_string(), "2000ms expect progress within 5000ms");
        let steps = parse("# quorum loss\n\n1.5s isolate leader for 3s # long enough\n").unwrap();
        assert_eq!(steps[0].to_string(), "1500ms isolate leader for 3000ms");
        for bad in [
            "isolate leader for 3s",
            "1s isolate nobody for 3s",
            "1s isolate leader",
            "-1s kill node1",
            "1s kill node0",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
