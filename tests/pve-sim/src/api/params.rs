//! The parameters of a call: what the client sent, and what is left after verification.

use std::collections::BTreeMap;

use serde_json::Value;

/// Parameters by name. After verification each value is a JSON string (integers and booleans in canonical text), or an array of strings.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Params(pub BTreeMap<String, Value>);

impl Params {
    /// The text of a parameter, none if it was not given.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// An integer parameter.
    pub fn integer(&self, name: &str) -> Option<i64> {
        self.text(name).and_then(|text| text.parse().ok())
    }

    /// A boolean parameter; absent is false.
    pub fn flag(&self, name: &str) -> bool {
        self.flag_given(name).unwrap_or(false)
    }

    /// A boolean parameter, none if it was not given.
    pub fn flag_given(&self, name: &str) -> Option<bool> {
        self.text(name).and_then(boolean)
    }

    /// The VMID of the path or body; 0 when there is none (the schema of a call that uses it requires it).
    pub fn vmid(&self) -> u32 {
        self.integer("vmid").and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
    }

    /// Whether the parameter was given.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Sets a text.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_owned(), Value::String(value.into()));
    }

    /// Takes a parameter out.
    pub fn take(&mut self, name: &str) -> Option<String> {
        match self.0.remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }
}

/// What PVE takes for a boolean inside of a property string or a config file.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some(true),
        "0" | "off" | "no" | "false" => Some(false),
        _ => None,
    }
}
