//! Draws flame graphs with the `inferno` crate.

use inferno::differential;
use inferno::flamegraph::color::{BasicPalette, Palette};
use inferno::flamegraph::{self, Options};
use std::io;

/// What a graph is about: its title, its unit, its colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Where processor time goes, in microseconds.
    OnCpu,
    /// The same, in samples of `perf`.
    OnCpuSamples,
    /// Where fibers wait, in microseconds.
    OffCpu,
    /// Stacks that came without saying what they count.
    Unknown,
}

impl Subject {
    fn options(self, title: &str) -> Options<'static> {
        let mut options = Options::default();
        options.title = title.to_owned();
        options.count_name = match self {
            Subject::OnCpu | Subject::OffCpu => "microseconds".into(),
            Subject::OnCpuSamples => "samples".into(),
            Subject::Unknown => "counts".into(),
        };
        // Blue is what off-CPU graphs are drawn in everywhere.
        options.colors = Palette::Basic(match self {
            Subject::OffCpu => BasicPalette::Io,
            Subject::OnCpu | Subject::OnCpuSamples | Subject::Unknown => BasicPalette::Hot,
        });
        options.deterministic = true;
        options
    }
}

/// Why there is no graph.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stacks are none, or have all the weight 0.
    #[error("no samples: nothing ran, or nothing waited, while it was looked at")]
    Empty,
    /// A line is no folded stack.
    #[error("line {number} is not a folded stack, `outer;inner NUMBER`: {line:?}")]
    NotFolded {
        /// From 1.
        number: usize,
        /// What it says.
        line: String,
    },
    /// Drawing failed.
    #[error("cannot draw the flame graph: {0}")]
    Drawing(#[from] io::Error),
}

/// Draws folded stacks as an SVG, which a browser makes searchable and zoomable.
///
/// ```
/// use squall_profile::flame::{Subject, graph};
///
/// let svg = graph("main;parse 30\nmain;answer 70\n", Subject::OnCpu, "a server").unwrap();
/// assert!(svg.contains("answer") && svg.contains("</svg>"));
/// ```
///
/// # Errors
/// The text has no stacks, or is something else.
pub fn graph(folded: &str, subject: Subject, title: &str) -> Result<String, Error> {
    check(folded)?;
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut subject.options(title), folded.lines(), &mut svg)?;
    Ok(String::from_utf8_lossy(&svg).into_owned())
}

/// Draws the second of two runs, in red what has grown and in blue what has shrunk. The first is scaled to the same total, so that the
/// length of the runs does not matter.
///
/// # Errors
/// As for [`graph`], for either.
pub fn difference(before: &str, after: &str, subject: Subject, title: &str) -> Result<String, Error> {
    check(before)?;
    check(after)?;
    let mut lines = Vec::new();
    let options = differential::Options { normalize: true, ..Default::default() };
    differential::from_readers(options, before.as_bytes(), after.as_bytes(), &mut lines)?;
    let lines = String::from_utf8_lossy(&lines);
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut subject.options(title), lines.lines(), &mut svg)?;
    Ok(String::from_utf8_lossy(&svg).into_owned())
}

fn check(folded: &str) -> Result<(), Error> {
    let mut total = 0.0;
    for (index, line) in folded.lines().enumerate() {
        let count = line.rsplit_once(' ').and_then(|(stack, count)| {
            let count = count.parse::<f64>().ok().filter(|count| count.is_finite() && *count >= 0.0)?;
            (!stack.is_empty()).then_some(count)
        });
        total += count.ok_or_else(|| Error::NotFolded { number: index + 1, line: line.to_owned() })?;
    }
    if total > 0.0 { Ok(()) } else { Err(Error::Empty) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_names_every_function_and_its_unit() {
        let svg = graph("a;b 10\na;c d 20\n", Subject::OffCpu, "<title & more>").expect("two stacks");
        assert!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"));
        for wanted in ["c d (20 microseconds", "b (10 microseconds", "&lt;title &amp; more&gt;"] {
            assert!(svg.contains(wanted), "{wanted}: {svg}");
        }
    }

    #[test]
    fn a_difference_shows_what_has_changed() {
        // Twice as long, and `b` has grown from a half to three quarters.
        let svg =
            difference("a;b 50\na;c 50\n", "a;b 150\na;c 50\n", Subject::OnCpu, "diff").expect("stacks");
        assert!(svg.contains("b (150 microseconds, 75.00%; +25.00%)"), "{svg}");
        assert!(svg.contains("c (50 microseconds, 25.00%; -25.00%)"), "{svg}");
    }

    #[test]
    fn what_is_no_profile_is_an_error() {
        for empty in ["", "a;b 0\n"] {
            assert!(matches!(graph(empty, Subject::OnCpu, ""), Err(Error::Empty)), "{empty:?}");
        }
        let wrong = graph("a;b 10\nno number\n", Subject::OnCpu, "");
        assert!(matches!(wrong, Err(Error::NotFolded { number: 2, .. })), "{wrong:?}");
        assert!(difference("a 1\n", "x\n", Subject::OnCpu, "").is_err());
    }
}
