//! The report: the same figures as text and as one HTML file, with plots, and with the flame graphs inside.

use crate::parts::{Entry, Session};
use crate::plot::{self, escaped};
use anyhow::Context;
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

/// Where it is.
pub struct Written {
    pub text: PathBuf,
    pub html: PathBuf,
}

/// A table of figures: its heading, the names of its columns, its rows.
struct Table {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

pub fn write(session: &Session) -> anyhow::Result<Written> {
    let written = Written {
        text: session.folder.join("COMPREHENSIVE_TEST_REPORT.md"),
        html: session.folder.join("report.html"),
    };
    for (path, contents) in [(&written.text, markdown(session)), (&written.html, html(session))] {
        fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(written)
}

fn tables(session: &Session) -> Vec<Table> {
    let results = session.entries.iter().map(|entry| {
        let result =
            entry.outcome.failure.as_ref().map_or("passed".into(), |failure| format!("FAILED: {failure}"));
        let seconds = format!("{:.1}", entry.outcome.took.as_secs_f64());
        vec![entry.title.clone(), entry.outcome.command.clone(), result, seconds, entry.file.clone()]
    });
    let mut tables = vec![Table {
        title: "Checks".into(),
        columns: vec!["part", "command", "result", "seconds", "output"],
        rows: results.collect(),
    }];
    for entry in &session.entries {
        tables.extend(figures(entry));
    }
    tables
}

fn decimal(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".into(), |value| format!("{value:.1}"))
}

/// What the program's JSON says that a person wants to know.
fn figures(entry: &Entry) -> Option<Table> {
    let figures = entry.figures.as_ref()?;
    let table = |columns: &[&'static str], rows| Table {
        title: entry.title.clone(),
        columns: columns.to_vec(),
        rows,
    };
    if let Some(phases) = figures["phases"].as_array() {
        let row = |phase: &Value| {
            vec![
                text(&phase["phase"]),
                text(&phase["operations"]),
                text(&phase["failed"]),
                decimal(&phase["operations_per_second"]),
            ]
        };
        return Some(table(
            &["phase", "operations", "failed", "operations/s"],
            phases.iter().map(row).collect(),
        ));
    }
    if let Some(tests) = figures["tests"].as_array() {
        let row = |test: &Value| {
            vec![text(&test["test"]), decimal(&test["mib_per_second"]), text(&test["skipped"])]
        };
        return Some(table(&["test", "MiB/s", "skipped"], tests.iter().map(row).collect()));
    }
    let parts = figures.as_object()?;
    if parts.values().all(|part| part["requests_per_second"].is_number()) {
        let row = |(name, part): (&String, &Value)| {
            let percentile = |name: &str| decimal(&part[name]);
            vec![
                name.clone(),
                decimal(&part["requests_per_second"]),
                text(&part["errors"]),
                percentile("p50_us"),
                percentile("p99_us"),
                percentile("p99.9_us"),
            ]
        };
        let columns = ["load", "requests/s", "errors", "p50 us", "p99 us", "p99.9 us"];
        return Some(table(&columns, parts.iter().map(row).collect()));
    }
    let row = |(name, value): (&String, &Value)| vec![name.replace('_', " "), text(value)];
    Some(table(&["figure", "value"], parts.iter().map(row).collect()))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => decimal(value),
        other => other.to_string(),
    }
}

fn heading(session: &Session) -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    vec![
        ("session", session.time.clone()),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("processor", field(&read("/proc/cpuinfo"), "model name")),
        (
            "processors",
            std::thread::available_parallelism().map_or_else(|_| String::new(), |count| count.to_string()),
        ),
        ("memory", field(&read("/proc/meminfo"), "MemTotal")),
        ("length", if session.quick { "quick".into() } else { "full".into() }),
    ]
}

fn markdown(session: &Session) -> String {
    let mut out = String::from("# Comprehensive test report\n\n");
    for (name, value) in heading(session) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "- {name}: {value}");
    }
    for table in tables(session) {
        let cells = |cells: &[String]| {
            cells.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>().join(" | ")
        };
        let columns: Vec<String> = table.columns.iter().map(|column| (*column).to_owned()).collect();
        let _ = write!(
            out,
            "\n## {}\n\n| {} |\n|{}\n",
            table.title,
            cells(&columns),
            "---|".repeat(columns.len())
        );
        for row in &table.rows {
            let _ = writeln!(out, "| {} |", cells(row));
        }
    }
    out += "\n## Flame graphs\n\nIn report.html, and as files:\n\n";
    let _ = writeln!(out, "- {}", session.perf_folder.display());
    for graph in &session.graphs {
        let _ = writeln!(out, "- {}", graph.title);
    }
    if !session.skipped.is_empty() {
        out += "\n## Skipped\n\n";
        for what in &session.skipped {
            let _ = writeln!(out, "- {what}");
        }
    }
    out
}

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1240px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:.5em 0}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}\
iframe{width:100%;height:600px;border:1px solid #ccc}pre{background:#f6f6f6;padding:.6em;overflow:auto;max-height:24em}";

fn html(session: &Session) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>Comprehensive test report {0}</title>\
         <style>{STYLE}</style></head><body>\n<h1>Comprehensive test report</h1>\n<ul>",
        session.time
    );
    for (name, value) in heading(session) {
        let _ = write!(out, "<li>{name}: {}</li>", escaped(&value));
    }
    out += "</ul>\n";
    for table in tables(session) {
        let _ = write!(out, "<h2>{}</h2>\n<table><tr>", escaped(&table.title));
        table.columns.iter().for_each(|column| out += &format!("<th>{}</th>", escaped(column)));
        out += "</tr>\n";
        for row in &table.rows {
            out += "<tr>";
            row.iter().for_each(|cell| out += &format!("<td>{}</td>", escaped(cell)));
            out += "</tr>\n";
        }
        out += "</table>\n";
    }
    out += "<h2>Plots</h2>\n";
    plots(session).iter().for_each(|plot| out += &format!("<div>{plot}</div>\n"));
    out += "<h2>Flame graphs</h2>\n<p>Click to zoom, Ctrl-F to search.</p>\n";
    for graph in &session.graphs {
        // Each is a document of its own, because each has a script of its own, with the same names.
        let _ = writeln!(
            out,
            "<h3>{0}</h3><iframe title='{0}' src='data:image/svg+xml;charset=utf-8,{1}'></iframe>",
            escaped(&graph.title),
            percent_encoded(&graph.svg)
        );
    }
    if !session.skipped.is_empty() {
        out += "<h2>Skipped</h2><ul>";
        session.skipped.iter().for_each(|what| out += &format!("<li>{}</li>", escaped(what)));
        out += "</ul>\n";
    }
    out += "<h2>Output</h2>\n";
    for entry in &session.entries {
        let said = format!("$ {}\n{}{}", entry.outcome.command, entry.outcome.stdout, entry.outcome.stderr);
        let _ = writeln!(
            out,
            "<details><summary>{}</summary><pre>{}</pre></details>",
            escaped(&entry.title),
            escaped(&said)
        );
    }
    out + "</body></html>\n"
}

fn plots(session: &Session) -> Vec<String> {
    let mut plots = Vec::new();
    for entry in &session.entries {
        let Some(figures) = &entry.figures else { continue };
        let list = |key: &str, name: &str, value: &str| -> Vec<(String, f64)> {
            let items = figures[key].as_array().map(Vec::as_slice).unwrap_or_default();
            items
                .iter()
                .filter_map(|item| Some((item[name].as_str()?.to_owned(), item[value].as_f64()?)))
                .collect()
        };
        let phases = list("phases", "phase", "operations_per_second");
        if !phases.is_empty() {
            plots.push(plot::bars(&entry.title, "operations/s", &phases));
        }
        let tests = list("tests", "test", "mib_per_second");
        if !tests.is_empty() {
            plots.push(plot::bars(&entry.title, "MiB/s", &tests));
        }
        let loads: Vec<_> = figures
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, load)| load["timeline"].is_array())
            .collect();
        if loads.is_empty() {
            continue;
        }
        let values = |field: &str, factor: f64| {
            let value =
                |(name, load): &(&String, &Value)| Some(((*name).clone(), load[field].as_f64()? * factor));
            loads.iter().filter_map(value).collect::<Vec<_>>()
        };
        plots.push(plot::bars(&entry.title, "requests/s", &values("requests_per_second", 1.0)));
        for (field, name) in [
            ("p50_us", "median latency"),
            ("p99_us", "99th percentile of latency"),
            ("p99.9_us", "99.9th percentile of latency"),
        ] {
            plots.push(plot::bars(&format!("{}: {name}", entry.title), "ms", &values(field, 0.001)));
        }
        let requests = |load: &Value| {
            load["timeline"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|second| second[0].as_f64())
                .collect()
        };
        let series: Vec<_> = loads.iter().map(|(name, load)| ((*name).clone(), requests(load))).collect();
        plots.push(plot::lines(&entry.title, "requests/s", &series));
    }
    plots
}

/// For an address: everything but letters, digits and a few harmless signs.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 3 / 2);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'-'
            | b'_'
            | b'.'
            | b'~'
            | b'/'
            | b':'
            | b'='
            | b';'
            | b','
            | b'('
            | b')'
            | b' ' => {
                out.push(char::from(byte));
            }
            byte => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_no_quotes_and_no_line_ends() {
        assert_eq!(percent_encoded("<a b='#1'>\n\u{e4}%"), "%3Ca b=%27%231%27%3E%0A%C3%A4%25");
    }
}
