//! Spans of time as people write them.

use std::{fmt, time::Duration};

use jiff::SignedDuration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span in whole seconds: `90s`, `5m`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(pub u32);

impl Seconds {
    /// Reads a span; nothing where it is none, negative, or no whole number of seconds.
    pub fn parse(text: &str) -> Option<Self> {
        let span: SignedDuration = text.parse().ok()?;
        let whole = span.subsec_nanos() == 0;
        u32::try_from(span.as_secs()).ok().filter(|_| whole).map(Self)
    }
}

impl From<Seconds> for Duration {
    fn from(s: Seconds) -> Self {
        Self::from_secs(s.0.into())
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0)
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Also what is no text at all, such as a bare number, is answered with the rule.
        let rule = "a span of time with a unit, such as 90s or 5m";
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Self::parse(&text).ok_or_else(|| de::Error::custom(format!("use {rule}"))),
            _ => Err(de::Error::custom(format!("use {rule}"))),
        }
    }
}

impl JsonSchema for Seconds {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Seconds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "description": "A span of time with a unit, such as 90s or 5m."})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_people_write_them() {
        for (text, want) in [
            ("90s", Some(90)),
            ("5m", Some(300)),
            ("1h30m", Some(5400)),
            ("90", None),
            ("-5s", None),
            ("500ms", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(Seconds::parse(text).map(|s| s.0), want, "{text}");
        }
        assert_eq!(Seconds(90).to_string(), "90s");
    }
}
