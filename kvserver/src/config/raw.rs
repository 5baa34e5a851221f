//! The first stage: what a file says, key by key with its line, without asking whether it makes sense.
//!
//! Both forms of the file become the same list, so all checks are written once, in `mod.rs`.

use toml::de::{DeTable, DeValue};

/// A setting as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawSetting {
    pub(super) line: usize,
    /// The key as the user wrote it, or would write it.
    pub(super) key: String,
    /// The node it belongs to, from 0; `None` for a setting of the cluster.
    pub(super) node: Option<usize>,
    /// The name without the node.
    pub(super) name: String,
    pub(super) value: String,
}

/// What keeps a file from being read at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) line: Option<usize>,
    pub(super) key: Option<String>,
    pub(super) problem: String,
}

/// Reads the form of one `key=value` a line: `node0ip=127.0.0.1`. A `#` at the start of a line, or after a
/// space, begins a comment.
pub(super) fn parse_lines(text: &str) -> Result<Vec<RawSetting>, Malformed> {
    let mut settings = Vec::new();
    for (line, content) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let content = content.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let Some((key, value)) = content.split_once('=') else {
            let problem = format!("expected `key=value`, found `{content}`");
            return Err(Malformed { line: Some(line), key: None, problem });
        };
        let key = key.trim();
        let comment = value.find(" #").or_else(|| value.find("\t#"));
        let value = value[..comment.unwrap_or(value.len())].trim();
        let (node, name) = split_node_key(key);
        settings.push(RawSetting {
            line,
            key: key.to_owned(),
            node,
            name: name.to_owned(),
            value: value.to_owned(),
        });
    }
    Ok(settings)
}

/// `node12port` is the `port` of node 12. Anything else is no key of a node.
fn split_node_key(key: &str) -> (Option<usize>, &str) {
    let Some(rest) = key.strip_prefix("node") else { return (None, key) };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    match rest[..digits].parse() {
        Ok(node) => (Some(node), &rest[digits..]),
        Err(_) => (None, key),
    }
}

/// Reads TOML: the settings of the cluster as top-level keys, and a `[[node]]` for each node.
pub(super) fn parse_toml(text: &str) -> Result<Vec<RawSetting>, Malformed> {
    let line_of = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
    let document = DeTable::parse(text).map_err(|error| Malformed {
        line: error.span().map(|span| line_of(span.start)),
        key: None,
        problem: error.message().to_owned(),
    })?;
    let mut settings = Vec::new();
    for (key, value) in document.get_ref() {
        let line = line_of(key.span().start);
        let key = key.get_ref().as_ref();
        if key != "node" {
            settings.push(toml_setting(line, None, key, value.get_ref())?);
            continue;
        }
        let not_nodes = || Malformed {
            line: Some(line),
            key: Some(key.to_owned()),
            problem: "expected [[node]] tables".into(),
        };
        let DeValue::Array(nodes) = value.get_ref() else { return Err(not_nodes()) };
        for (node, table) in nodes.iter().enumerate() {
            let DeValue::Table(table) = table.get_ref() else { return Err(not_nodes()) };
            for (key, value) in table {
                let line = line_of(key.span().start);
                settings.push(toml_setting(line, Some(node), key.get_ref(), value.get_ref())?);
            }
        }
    }
    settings.sort_by_key(|setting| setting.line);
    Ok(settings)
}

fn toml_setting(
    line: usize,
    node: Option<usize>,
    name: &str,
    value: &DeValue<'_>,
) -> Result<RawSetting, Malformed> {
    let key = node.map_or_else(|| name.to_owned(), |node| format!("node[{node}].{name}"));
    let value = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        _ => {
            let problem = "expected a string or an integer".into();
            return Err(Malformed { line: Some(line), key: Some(key), problem });
        }
    };
    Ok(RawSetting { line, key, node, name: name.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(settings: Result<Vec<RawSetting>, Malformed>) -> Vec<String> {
        let show = |setting: RawSetting| {
            format!(
                "{}: {} [{:?} {}] = {}",
                setting.line, setting.key, setting.node, setting.name, setting.value
            )
        };
        settings.unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn lines_with_comments_and_spaces() {
        let text = "\u{feff}# head\n\n node0ip = 127.0.0.1 # here\nnode12port=1\r\npassword=a=b#c\nnode=1\nnodes=2\n";
        assert_eq!(
            shown(parse_lines(text)),
            [
                "3: node0ip [Some(0) ip] = 127.0.0.1",
                "4: node12port [Some(12) port] = 1",
                "5: password [None password] = a=b#c",
                "6: node [None node] = 1",
                "7: nodes [None nodes] = 2",
            ]
        );
        assert_eq!(parse_lines("a=1\nnonsense\n").unwrap_err().line, Some(2));
    }

    #[test]
    fn toml_with_lines() {
        let text = "password = \"a # b\"\n\n[[node]]\nip = \"::1\"\nport = 7_001\n[[node]]\nport = \"1\"\n";
        assert_eq!(
            shown(parse_toml(text)),
            [
                "1: password [None password] = a # b",
                "4: node[0].ip [Some(0) ip] = ::1",
                "5: node[0].port [Some(0) port] = 7001",
                "7: node[1].port [Some(1) port] = 1",
            ]
        );
        for (text, line) in
            [("a = 1\nb = \n", 2), ("a = 1\na = 2\n", 2), ("\nnode = 1\n", 2), ("x = 1.5\n", 1), ("[t]\n", 1)]
        {
            assert_eq!(parse_toml(text).unwrap_err().line, Some(line), "{text:?}");
        }
    }
}
