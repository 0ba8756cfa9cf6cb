//! Ids that are checked once, where they enter. The rules are PVE's, or stricter.

use std::fmt;

use thiserror::Error;
use uuid::Uuid;

/// The smallest VMID that PVE gives to guests.
pub const VMID_MIN: u32 = 100;
/// The largest VMID that PVE accepts.
pub const VMID_MAX: u32 = 999_999_999;

/// The longest claim in the owner record of a volume.
pub const CLAIM_MAX: usize = 253;

/// What is wrong with an id: which kind, what was given, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{value}' is not {kind}: {rule}")]
pub struct InvalidId {
    /// "a DNS name", ...
    pub kind: &'static str,
    /// What was given, cut to 128 characters.
    pub value: String,
    /// What would be right.
    pub rule: &'static str,
}

fn check(ok: bool, kind: &'static str, value: &str, rule: &'static str) -> Result<(), InvalidId> {
    if ok { Ok(()) } else { Err(InvalidId { kind, value: value.chars().take(128).collect(), rule }) }
}

/// A VMID that PVE accepts, 100 to 999999999.
pub fn vmid(value: u32) -> Result<u32, InvalidId> {
    check((VMID_MIN..=VMID_MAX).contains(&value), "a VMID", &value.to_string(), "use 100 to 999999999")?;
    Ok(value)
}

fn is_label(label: &str) -> bool {
    let b = label.as_bytes();
    (1..=63).contains(&b.len()) && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-') && b[0] != b'-' && b[b.len() - 1] != b'-'
}

/// A DNS name as PVE wants it for VMs: labels of 1 to 63 letters, digits and hyphens, 253 in all.
pub fn dns_name(value: &str) -> Result<(), InvalidId> {
    check(
        value.len() <= 253 && value.split('.').all(is_label),
        "a DNS name",
        value,
        "use labels of 1 to 63 letters, digits and '-' joined by '.', none beginning or ending with '-'",
    )
}

/// A tenant or controller name: one lower-case DNS label.
pub fn tenant(value: &str) -> Result<(), InvalidId> {
    check(
        is_label(value) && !value.bytes().any(|c| c.is_ascii_uppercase()),
        "a tenant or controller name",
        value,
        "use 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
    )
}

/// A request id: 1 to 128 of `[A-Za-z0-9._:-]`.
pub fn request_id(value: &str) -> Result<(), InvalidId> {
    check(
        (1..=128).contains(&value.len()) && value.bytes().all(|c| c.is_ascii_alphanumeric() || b"._:-".contains(&c)),
        "a request id",
        value,
        "use 1 to 128 of letters, digits, '.', '_', ':' and '-'",
    )
}

/// A storage id of PVE: a letter, then letters, digits, `-`, `_`, `.`, ending in a letter or digit.
pub fn storage(value: &str) -> Result<(), InvalidId> {
    let b = value.as_bytes();
    check(
        (2..=100).contains(&b.len())
            && b[0].is_ascii_alphabetic()
            && b[b.len() - 1].is_ascii_alphanumeric()
            && b.iter().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(c)),
        "a storage id",
        value,
        "begin with a letter, go on with letters, digits, '-', '_', '.', end with a letter or digit",
    )
}

/// A snapshot's name as PVE takes it: 2 to 40 of `[A-Za-z0-9_-]`, beginning with a letter; `current` and `pending` mean something else to PVE.
pub fn snapshot(value: &str) -> Result<(), InvalidId> {
    let b = value.as_bytes();
    check(
        (2..=40).contains(&b.len())
            && b[0].is_ascii_alphabetic()
            && b.iter().all(|c| c.is_ascii_alphanumeric() || b"_-".contains(c))
            && !matches!(value, "current" | "pending"),
        "a snapshot's name",
        value,
        "use 2 to 40 letters, digits, '_' and '-', beginning with a letter, but not 'current' or 'pending'",
    )
}

/// A cluster in the owner record of a volume: 1 to 63 of `[a-z0-9.-]`.
pub fn cluster(value: &str) -> Result<(), InvalidId> {
    check(
        (1..=63).contains(&value.len()) && value.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-".contains(&c)),
        "a cluster's name",
        value,
        "use 1 to 63 lower-case letters, digits, '.' and '-'",
    )
}

/// A claim in the owner record of a volume: 1 to 253 of `[A-Za-z0-9._/-]`.
pub fn claim(value: &str) -> Result<(), InvalidId> {
    check(
        (1..=CLAIM_MAX).contains(&value.len()) && value.bytes().all(|c| c.is_ascii_alphanumeric() || b"._/-".contains(&c)),
        "a claim",
        value,
        "use 1 to 253 letters, digits, '.', '_', '/' and '-'",
    )
}

/// A network interface name of Linux: 1 to 15 characters, no white space, no `/`.
pub fn interface(value: &str) -> Result<(), InvalidId> {
    check(
        (1..=15).contains(&value.len())
            && value.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
            && value != "."
            && value != "..",
        "an interface name",
        value,
        "use 1 to 15 letters, digits, '.', '_', '-'",
    )
}

/// A tag: `[a-z0-9_][a-z0-9_+.-]*`, at most 64 characters.
pub fn tag(value: &str) -> Result<(), InvalidId> {
    let b = value.as_bytes();
    let plain = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'_';
    check(
        (1..=64).contains(&b.len()) && plain(&b[0]) && b.iter().all(|c| plain(c) || b"+.-".contains(c)),
        "a tag",
        value,
        "use 1 to 64 of lower-case letters, digits, '_', '+', '.', '-', beginning with a letter, digit or '_'",
    )
}

/// A pool: path-like name of PVE, up to three levels.
pub fn pool(value: &str) -> Result<(), InvalidId> {
    let part = |p: &str| !p.is_empty() && p.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
    check(
        value.len() <= 128 && value.split('/').count() <= 3 && value.split('/').all(part),
        "a pool",
        value,
        "use letters, digits, '.', '_', '-', at most three levels joined by '/'",
    )
}

/// A node's name: one DNS label.
pub fn node(value: &str) -> Result<(), InvalidId> {
    check(is_label(value), "a node name", value, "use 1 to 63 letters, digits and '-'")
}

/// An SMBIOS UUID; returned in lower case with hyphens.
pub fn uuid(value: &str) -> Result<String, InvalidId> {
    match Uuid::try_parse(value) {
        Ok(u) if value.len() == 36 => Ok(u.hyphenated().to_string()),
        _ => Err(InvalidId {
            kind: "a UUID",
            value: value.chars().take(128).collect(),
            rule: "use 32 hexadecimal digits in the form 8-4-4-4-12",
        }),
    }
}

/// Two hexadecimal digits. The parser alone would take a sign for the first.
fn hex_byte(text: &str) -> Option<u8> {
    let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    u8::from_str_radix(text, 16).ok().filter(|_| digits)
}

/// A MAC address that is unicast; returned in upper case with colons.
pub fn mac(value: &str) -> Result<String, InvalidId> {
    let parts: Vec<&str> = value.split(':').collect();
    let bytes: Option<Vec<u8>> = parts.iter().map(|p| hex_byte(p)).collect();
    match bytes {
        Some(b) if b.len() == 6 && b[0] & 1 == 0 => Ok(value.to_ascii_uppercase()),
        _ => Err(InvalidId {
            kind: "a MAC address",
            value: value.chars().take(128).collect(),
            rule: "use a unicast address such as BC:24:11:00:00:01",
        }),
    }
}

/// The name of an operation, `operations/<uuid>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationName(Uuid);

impl OperationName {
    /// A new, random name.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Reads `operations/<uuid>`.
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        value.strip_prefix("operations/").and_then(|u| Uuid::try_parse(u).ok()).map(Self).ok_or_else(|| InvalidId {
            kind: "an operation name",
            value: value.chars().take(128).collect(),
            rule: "use operations/<uuid> as returned by the call that started it",
        })
    }

    /// The UUID part, as it stands in marks.
    pub fn uuid(&self) -> Uuid {
        self.0
    }
}

impl fmt::Display for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operations/{}", self.0.hyphenated())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_pve_refuses_are_refused() {
        for bad in ["", "a_b", "-a", "a-", "a..b", ".", "ü", &"a".repeat(64), &["a"; 200].join(".")] {
            assert!(dns_name(bad).is_err(), "{bad}");
        }
        for good in ["a", "web-1", "A.b.c", &"a".repeat(63)] {
            assert!(dns_name(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn an_error_names_value_and_remedy() {
        let text = dns_name("a_b").unwrap_err().to_string();
        assert!(text.contains("'a_b'") && text.contains("letters, digits and '-'"), "{text}");
    }

    #[test]
    fn ids_are_normalised() {
        assert_eq!(uuid("3CE39E16-A6D8-4C28-AB96-A142978C9CD2").unwrap(), "3ce39e16-a6d8-4c28-ab96-a142978c9cd2");
        assert_eq!(mac("bc:24:11:00:00:0a").unwrap(), "BC:24:11:00:00:0A");
        for bad in ["", "01:24:11:00:00:0a", "bc:24:11:00:00", "bc:24:11:00:00:0g", "bc:24:11:00:00:+a"] {
            assert!(mac(bad).is_err(), "{bad}");
        }
        assert!(uuid("3CE39E16A6D84C28AB96A142978C9CD2").is_err());
    }

    #[test]
    fn limits_of_each_kind_hold() {
        assert!(vmid(99).is_err() && vmid(100).is_ok() && vmid(1_000_000_000).is_err());
        assert!(interface("vmbr0").is_ok() && interface("a23456789012345x").is_err() && interface("a/b").is_err());
        assert!(tag("k8s").is_ok() && tag("K8s").is_err() && tag("-a").is_err() && tag("").is_err());
        assert!(storage("local-lvm").is_ok() && storage("1a").is_err() && storage("a/..").is_err());
        assert!(tenant("team-a").is_ok() && tenant("Team").is_err() && tenant("").is_err());
        assert!(request_id("m:1/2").is_err() && request_id("m:1-2").is_ok() && request_id("").is_err());
        assert!(snapshot("a2").is_ok() && snapshot("a").is_err() && snapshot("2a").is_err() && snapshot("current").is_err());
        assert!(cluster("prod.eu-1").is_ok() && cluster("Prod").is_err() && cluster("").is_err());
        assert!(claim("ns/data_0.A").is_ok() && claim("a b").is_err() && claim(&"a".repeat(254)).is_err());
        assert!(pool("a/b/c").is_ok() && pool("a/b/c/d").is_err() && pool("a//b").is_err());
    }

    #[test]
    fn an_operation_name_reads_back() {
        let name = OperationName::random();
        assert_eq!(OperationName::parse(&name.to_string()).unwrap(), name);
        assert!(OperationName::parse("operations/1").is_err());
    }
}
