//! Property strings: `virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=5`. Their schemas stand in a small notation, one line a format.

use std::collections::BTreeMap;

use super::{Param, format, params::boolean, schema::Format};

/// The schema of a property string.
pub(super) struct Properties {
    params: Vec<(Param, Kind)>,
    default: Option<&'static str>,
    /// Keys that are another name for one: `virtio=<MAC>` gives `model` and `macaddr`.
    alias: Option<(&'static [&'static str], &'static str, &'static str)>,
    requires: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Boolean,
    Other,
}

/// A key's values after verification.
pub(super) type Checked = BTreeMap<String, String>;

impl Properties {
    /// Reads the notation: blank-separated `key:type` with `*` before the default key and `!` before a required one. Types: `b` boolean; `i` or `i(min..max)`
    /// integer; `n` number; `e(a|b)` one of these; `s` text; `f(name)` a named format; `u(max)` URL-encoded text; `r(name)` a named pattern.
    pub(super) fn read(notation: &'static str) -> Self {
        let mut properties = Self { params: Vec::new(), default: None, alias: None, requires: &[] };
        for item in notation.split_whitespace() {
            let (key, kind) = item.split_once(':').unwrap_or((item, "s"));
            let name = key.trim_start_matches(['*', '!']);
            if key.contains('*') {
                properties.default = Some(name);
            }
            let param = param(name, kind);
            let param = if key.contains('!') { param } else { param.optional() };
            properties.params.push((param, if kind == "b" { Kind::Boolean } else { Kind::Other }));
        }
        properties
    }

    /// Lets each of `names` stand for `model` with `macaddr` as its value, in this manner.
    pub(super) fn alias(self, names: &'static [&'static str], key: &'static str, value: &'static str) -> Self {
        Self { alias: Some((names, key, value)), ..self }
    }

    /// Pairs of keys of which the first is refused without the second.
    pub(super) fn requires(self, requires: &'static [(&'static str, &'static str)]) -> Self {
        Self { requires, ..self }
    }

    /// Checks a property string and gives its values by key.
    pub(super) fn check(&self, name: &str, text: &str) -> Result<Checked, String> {
        let mut found = Checked::new();
        let mut errors: BTreeMap<String, String> = BTreeMap::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (key, value) = match (part.split_once('='), self.default) {
                (Some((key, value)), _) => (key.trim(), value.trim()),
                (None, Some(default)) if !found.contains_key(default) => (default, part.trim()),
                (None, Some(_)) => return Err(String::from("value without key, but schema does not define a default key")),
                (None, None) => return Err(String::from("value without key, but schema does not define a default key")),
            };
            let (names, model, address) = self.alias.unwrap_or((&[], "", ""));
            if names.contains(&key) {
                found.insert(model.to_owned(), key.to_owned());
                found.insert(address.to_owned(), value.to_owned());
                continue;
            }
            if found.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(format!("duplicate key in comma-separated list property: {key}"));
            }
        }
        for (key, value) in &mut found {
            match self.params.iter().find(|(param, _)| param.name() == key) {
                None => {
                    let text = "property is not defined in schema and the schema does not allow additional properties";
                    errors.insert(key.clone(), text.to_owned());
                }
                Some((param, kind)) => {
                    // Words are booleans here, unlike in plain parameters.
                    if let (Kind::Boolean, Some(flag)) = (kind, boolean(value)) {
                        *value = String::from(if flag { "1" } else { "0" });
                    }
                    if let Err(message) = param.check(value) {
                        errors.insert(key.clone(), message);
                    }
                }
            }
        }
        for (param, _) in self.params.iter().filter(|(param, _)| param.is_required() && !found.contains_key(param.name())) {
            errors.insert(param.name().to_owned(), String::from("property is missing and it is not optional"));
        }
        for (key, other) in self.requires {
            if found.contains_key(*key) && !found.contains_key(*other) {
                errors.insert((*other).to_owned(), format!("missing property required by '{name}.{key}'"));
            }
        }
        if errors.is_empty() {
            return Ok(found);
        }
        // Each line ends; `Param::check` adds the last one's.
        let lines: Vec<String> = errors.iter().map(|(key, message)| format!("{name}.{key}: {message}")).collect();
        Err(format!("format error\n{}", lines.join("\n")))
    }
}

fn param(name: &str, kind: &str) -> Param {
    let (kind, inner) = kind.split_once('(').map_or((kind, ""), |(kind, rest)| (kind, rest.trim_end_matches(')')));
    match kind {
        "b" => Param::boolean(name),
        "i" => match inner.split_once("..") {
            Some((min, "")) => Param::integer(name).min(min.parse().unwrap_or_default()),
            Some((min, max)) => Param::integer(name).range(min.parse().unwrap_or_default(), max.parse().unwrap_or(i64::MAX)),
            None => Param::integer(name),
        },
        "n" => Param::number(name, inner.split_once("..").and_then(|(min, _)| min.parse().ok()), None),
        "e" => Param::choice(name, choices(inner)),
        "f" => Param::text(name).format(named(inner)),
        "u" => Param::text(name).format(format::urlencoded).max_length(inner.parse().unwrap_or(usize::MAX)),
        "r" => Param::text(name).pattern(pattern(inner)),
        _ => Param::text(name),
    }
}

/// The choices live as long as the tables that are built once from them.
fn choices(inner: &str) -> &'static [&'static str] {
    let leaked: Vec<&'static str> = inner.split('|').map(|choice| &*Box::leak(choice.to_owned().into_boxed_str())).collect();
    Box::leak(leaked.into_boxed_slice())
}

fn named(name: &str) -> Format {
    match name {
        "mac" => format::mac,
        "volume" => format::volume,
        "drive" => format::drive_volume,
        "size" => format::disk_size,
        "ip4c" => format::ipv4_config,
        "ip6c" => format::ipv6_config,
        "ip4" => format::ipv4,
        "ip6" => format::ipv6,
        "uuid" => format::uuid,
        _ => format::anything,
    }
}

fn pattern(name: &str) -> fn(&str) -> bool {
    fn word(text: &str, max: usize) -> bool {
        text.len() <= max && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_') || c.is_whitespace())
    }
    match name {
        "machine" => machine_type,
        "product" => |text| word(text, 16),
        "vendor" => |text| word(text, 8),
        "wwn" => |text| text.strip_prefix("0x").is_some_and(|hex| hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit())),
        _ => |_| true,
    }
}

/// `pc`, `q35`, `pc-q35-9.0`, `pc-i440fx-8.1+pve1`, `virt`.
fn machine_type(text: &str) -> bool {
    let version = |text: &str| {
        let (number, _) = text.split_once("+pve").unwrap_or((text, ""));
        let number = number.trim_end_matches(".pxe");
        number.split('.').count() >= 2 && number.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    let versioned = ["pc-i440fx-", "pc-q35-", "virt-"].iter().find_map(|prefix| text.strip_prefix(prefix));
    matches!(text, "pc" | "q35" | "virt") || versioned.is_some_and(version)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mistakes_are_told_by_key() {
        let net = Properties::read("*model:e(virtio|e1000) bridge:s macaddr:f(mac) tag:i(1..4094) firewall:b").alias(
            &["virtio", "e1000"],
            "model",
            "macaddr",
        );
        let cases = [
            ("virtio,bridge=vmbr0,tag=4095", "format error\nnet0.tag: value must have a maximum value of 4094"),
            ("virtio=zz", "format error\nnet0.macaddr: invalid format - value does not look like a valid unicast MAC address\n"),
            ("virtio,firewall=2", "format error\nnet0.firewall: type check ('boolean') failed - got '2'"),
            ("virtio,x=2", "format error\nnet0.x: property is not defined in schema and the schema does not allow additional properties"),
        ];
        for (text, message) in cases {
            assert_eq!(net.check("net0", text).unwrap_err(), message);
        }
        let good = net.check("net0", "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=on").unwrap();
        assert_eq!((good["model"].as_str(), good["firewall"].as_str()), ("virtio", "1"));
    }

    #[test]
    fn machine_types() {
        for (text, good) in [("q35", true), ("pc-q35-9.0", true), ("pc-i440fx-8.1+pve1", true), ("i440fxx", false), ("pc-q35", false)] {
            assert_eq!(machine_type(text), good, "{text}");
        }
    }
}
