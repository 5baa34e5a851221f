//! How replies and keys are shown: to people as `redis-cli` does, to scripts as JSON.

use serde_json::{Value, json};
use squall_kvserver::resp::Reply;

/// Bytes as JSON: a string if they are text, else their hexadecimal digits in an object.
pub fn bytes_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
    }
}

/// Bytes for a terminal, within quotation marks.
pub fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// Bytes for a line of output: as they are if they are text without line breaks, else quoted.
pub fn plain(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => quoted(bytes),
    }
}

pub fn reply_json(reply: &Reply) -> Value {
    match reply {
        Reply::Status(text) => json!(text),
        Reply::Error(text) => json!({ "error": text }),
        Reply::Integer(number) => json!(number),
        Reply::Bulk(bytes) => bytes_json(bytes),
        Reply::Nil => Value::Null,
        Reply::Array(items) => items.iter().map(reply_json).collect(),
        Reply::Map(pairs) => {
            pairs.iter().map(|(key, value)| json!([reply_json(key), reply_json(value)])).collect()
        }
    }
}

/// A reply as `redis-cli` prints it, in one or more lines.
pub fn reply_text(reply: &Reply) -> String {
    match reply {
        Reply::Status(text) => text.to_string(),
        Reply::Error(text) => format!("(error) {text}"),
        Reply::Integer(number) => format!("(integer) {number}"),
        Reply::Bulk(bytes) => quoted(bytes),
        Reply::Nil => "(nil)".into(),
        Reply::Array(items) if items.is_empty() => "(empty array)".into(),
        Reply::Array(items) => numbered(items.iter().map(reply_text)),
        Reply::Map(pairs) => {
            numbered(pairs.iter().map(|(key, value)| format!("{} => {}", reply_text(key), reply_text(value))))
        }
    }
}

fn numbered(items: impl Iterator<Item = String>) -> String {
    let line = |(index, item): (usize, String)| {
        let label = format!("{}) ", index + 1);
        format!("{label}{}", item.replace('\n', &format!("\n{}", " ".repeat(label.len()))))
    };
    items.enumerate().map(line).collect::<Vec<_>>().join("\n")
}
