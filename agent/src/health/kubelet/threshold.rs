//! Thresholds at which the kubelet evicts pods.

use std::{collections::BTreeMap, fmt};

/// Signals that kubelets know.
pub(super) const SIGNALS: [&str; 9] = [
    "memory.available",
    "allocatableMemory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "containerfs.available",
    "containerfs.inodesFree",
    "pid.available",
];

/// What kubelets have on Linux, unless they are told otherwise.
pub(super) const DEFAULTS: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];

/// A threshold: pods are evicted where less than that is available.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Threshold {
    /// Bytes, inodes, tasks.
    Quantity(u64),
    /// Of the capacity, 0 to 1.
    Share(f64),
}

impl Threshold {
    /// Parses one as the kubelet does. `Ok(None)`: one that is ignored. Errors: why the kubelet does not start with it.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, String> {
        let text = text.trim();
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse::<f64>() {
                Ok(p) if p == 0.0 || p == 100.0 => Ok(None),
                Ok(p) if (0.0..=100.0).contains(&p) => Ok(Some(Self::Share(p / 100.0))),
                _ => Err(format!("'{text}' is no share from 0% to 100%")),
            };
        }
        match quantity(text) {
            Some(0) => Err(format!("'{text}' is not above 0")),
            Some(n) => Ok(Some(Self::Quantity(n))),
            None => Err(format!("'{text}' is neither a quantity such as 100Mi nor a share such as 10%")),
        }
    }

    /// How much that is of a capacity.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a capacity fits where the capacity does")]
    pub(super) fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Quantity(n) => n,
            Self::Share(share) => (capacity as f64 * share) as u64,
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantity(n) => f.write_str(&size(*n)),
            Self::Share(share) => write!(f, "{}%", (share * 1000.0).round() / 10.0),
        }
    }
}

/// A quantity of Kubernetes; fractions are rounded up.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
fn quantity(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let (digits, factor) = SUFFIXES.iter().find_map(|(s, factor)| Some((text.strip_suffix(s)?, *factor))).unwrap_or((text, 1.0));
    // Rust also parses "inf" and "nan".
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.' || c == '+') {
        return None;
    }
    let value = (digits.parse::<f64>().ok()? * factor).ceil();
    (value.is_finite() && value <= 1e19).then_some(value as u64)
}

/// A number of bytes, rounded for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= 10 * unit || (bytes >= *unit && bytes.is_multiple_of(*unit))) {
        Some((suffix, unit)) => format!("{}{suffix}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// Hard and soft thresholds by signal.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Thresholds {
    pub(super) hard: BTreeMap<String, Threshold>,
    pub(super) soft: BTreeMap<String, Threshold>,
}

impl Thresholds {
    /// Those in force. `None` of `hard`: not told, so the defaults. Errors: all that keep the kubelet from starting.
    pub(super) fn new(
        hard: Option<&BTreeMap<String, String>>,
        merge_defaults: bool,
        soft: Option<&BTreeMap<String, String>>,
    ) -> Result<Self, Vec<String>> {
        let (mut this, mut wrong) = (Self::default(), Vec::new());
        if hard.is_none() || merge_defaults {
            let parsed = DEFAULTS.iter().filter_map(|(signal, value)| Some(((*signal).to_owned(), Threshold::parse(value).ok()??)));
            this.hard.extend(parsed);
        }
        for (told, key, into) in [(hard, "evictionHard", &mut this.hard), (soft, "evictionSoft", &mut this.soft)] {
            for (signal, value) in told.into_iter().flatten() {
                match Threshold::parse(value) {
                    _ if !SIGNALS.contains(&signal.as_str()) => wrong.push(format!("{key}: the kubelet knows no signal '{signal}'")),
                    Err(e) => wrong.push(format!("{key}: {signal}: {e}")),
                    Ok(None) => drop(into.remove(signal)),
                    Ok(Some(threshold)) => drop(into.insert(signal.clone(), threshold)),
                }
            }
        }
        if wrong.is_empty() { Ok(this) } else { Err(wrong) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn thresholds_are_parsed_as_the_kubelet_does() {
        for (text, expected) in [
            ("100Mi", Some(Threshold::Quantity(100 << 20))),
            ("1Gi", Some(Threshold::Quantity(1 << 30))),
            ("1.5Gi", Some(Threshold::Quantity(3 << 29))),
            ("500M", Some(Threshold::Quantity(500_000_000))),
            ("1e3", Some(Threshold::Quantity(1000))),
            ("1000", Some(Threshold::Quantity(1000))),
            ("1500m", Some(Threshold::Quantity(2))),
            ("10%", Some(Threshold::Share(0.1))),
            ("0%", None),
            ("100%", None),
        ] {
            assert_eq!(Threshold::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "%", "-5%", "101%", "0", "-1Gi", "ten", "1Xi", "inf", "nan", "NaN%", "1 0"] {
            Threshold::parse(text).unwrap_err();
        }
    }

    #[test]
    fn those_told_replace_the_defaults_unless_they_are_merged() {
        let told: BTreeMap<_, _> =
            [("memory.available".to_owned(), "1Gi".to_owned()), ("imagefs.available".to_owned(), "0%".to_owned())].into();
        let defaults = Thresholds::new(None, false, None).unwrap();
        assert_eq!(defaults.hard.len(), 5);
        let replaced = Thresholds::new(Some(&told), false, None).unwrap();
        assert_eq!(replaced.hard, [("memory.available".to_owned(), Threshold::Quantity(1 << 30))].into());
        let merged = Thresholds::new(Some(&told), true, Some(&told)).unwrap();
        assert_eq!(
            merged.hard.keys().collect::<Vec<_>>(),
            ["imagefs.inodesFree", "memory.available", "nodefs.available", "nodefs.inodesFree"]
        );
        assert_eq!(merged.soft.len(), 1);
        let wrong: BTreeMap<_, _> = [("memory.free".to_owned(), "1Gi".to_owned()), ("nodefs.available".to_owned(), "x".to_owned())].into();
        assert_eq!(Thresholds::new(Some(&wrong), false, None).unwrap_err().len(), 2);
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [(100 << 20, "100Mi"), (1 << 30, "1Gi"), ((50 << 30) + 12345, "50Gi"), (1536 << 20, "1536Mi"), (700, "700")] {
            assert_eq!(size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn no_text_ends_the_parsing_badly(text in "\\PC{0,12}", capacity: u64) {
            if let Ok(Some(threshold)) = Threshold::parse(&text) {
                let _ = (threshold.of(capacity), threshold.to_string());
            }
        }

        #[test]
        fn a_share_is_never_above_the_capacity(percent in 0.1f64..99.9, capacity in 0u64..1 << 50) {
            let threshold = Threshold::parse(&format!("{percent}%")).unwrap().unwrap();
            prop_assert!(threshold.of(capacity) <= capacity);
        }
    }
}
