//! Drive strings: `local:101/vm-101-disk-0.qcow2,discard=on,size=1G`.

use std::collections::BTreeMap;

/// A drive's volume and options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drive {
    /// The volume, `none` or `cdrom`.
    pub file: String,
    /// Its options, in the order in which PVE writes them.
    pub options: BTreeMap<String, String>,
}

impl Drive {
    /// Reads a drive string; parts that are no `key=value` are left out.
    pub fn parse(text: &str) -> Self {
        let mut drive = Self::default();
        for (at, part) in text.split(',').enumerate() {
            match part.split_once('=') {
                Some(("file" | "volume", file)) => drive.file = file.to_owned(),
                Some((key, value)) => {
                    drive.options.insert(key.to_owned(), value.to_owned());
                }
                None if at == 0 => drive.file = part.to_owned(),
                None => {}
            }
        }
        drive
    }

    /// The drive string.
    pub fn print(&self) -> String {
        let options = self.options.iter().map(|(key, value)| format!(",{key}={value}"));
        std::iter::once(self.file.clone()).chain(options).collect()
    }

    /// An option.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// Sets an option.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.options.insert(key.to_owned(), value.into());
    }

    /// Whether it is a CD drive, a cloud-init drive among them.
    pub fn is_cdrom(&self) -> bool {
        self.option("media") == Some("cdrom")
    }

    /// Whether it is a cloud-init drive.
    pub fn is_cloudinit(&self) -> bool {
        self.is_cdrom() && (self.file.ends_with(":cloudinit") || self.file.rsplit('/').next().is_some_and(is_cloudinit_file))
    }

    /// Whether it has a volume on a storage.
    pub fn has_volume(&self) -> bool {
        !matches!(self.file.as_str(), "none" | "cdrom" | "") && !self.file.starts_with('/')
    }

    /// Its size in bytes, 0 if it is not told.
    pub fn size(&self) -> u64 {
        self.option("size").and_then(parse_size).unwrap_or(0)
    }
}

fn is_cloudinit_file(file: &str) -> bool {
    file.strip_prefix("vm-")
        .and_then(|rest| rest.split_once("-cloudinit"))
        .is_some_and(|(vmid, _)| vmid.bytes().all(|b| b.is_ascii_digit()))
}

/// `1G` in bytes. Units K, M, G, T; a fraction is allowed.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let fits = digits.starts_with(|c: char| c.is_ascii_digit()) && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    scaled(digits.parse().ok().filter(|_| fits)?, shift)
}

/// A size in GiB as in `local:0.5`, in bytes.
pub fn size_of_gib(text: &str) -> Option<u64> {
    scaled(text.parse().ok()?, 30)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "sizes are far below 2^63 bytes, and whole KiB matter"
)]
fn scaled(number: f64, shift: u32) -> Option<u64> {
    let bytes = number * (1u64 << shift) as f64;
    (bytes.is_finite() && (0.0..9.0e18).contains(&bytes)).then_some(bytes as u64)
}

/// A size in the largest unit that divides it, as PVE writes it.
pub fn print_size(bytes: u64) -> String {
    let mut value = bytes;
    if !value.is_multiple_of(1024) {
        return value.to_string();
    }
    for unit in ["K", "M", "G"] {
        value /= 1024;
        if !value.is_multiple_of(1024) {
            return format!("{value}{unit}");
        }
    }
    format!("{}T", value / 1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn drives_are_read_and_written() {
        let drive = Drive::parse("local:101/vm-101-cloudinit.qcow2,media=cdrom,size=4M");
        assert!(drive.is_cloudinit() && drive.has_volume());
        assert_eq!(drive.size(), 4 << 20);
        assert_eq!(Drive::parse("file=local:1,mbps_rd=10,iops_wr=100").print(), "local:1,iops_wr=100,mbps_rd=10");
        assert!(!Drive::parse("none,media=cdrom").has_volume());
    }

    #[test]
    fn sizes_as_recorded() {
        let cases =
            [(0, "0T"), (1 << 30, "1G"), (512 << 20, "512M"), (1040 << 20, "1040M"), (1 << 42, "4T"), (528 * 1024, "528K"), (100, "100")];
        for (bytes, text) in cases {
            assert_eq!(print_size(bytes), text);
            assert_eq!(parse_size(text), Some(bytes));
        }
        assert_eq!((parse_size("x"), parse_size(""), parse_size("-1G"), parse_size("1.5G")), (None, None, None, Some(3 << 29)));
    }

    proptest! {
        #[test]
        fn sizes_survive(kib in 0u64..1 << 40) {
            prop_assert_eq!(parse_size(&print_size(kib * 1024)), Some(kib * 1024));
        }

        #[test]
        fn drive_strings_survive(file in "[a-z]{2,8}:[a-z0-9/.-]{1,20}", options in prop::collection::btree_map("[b-e][a-z_]{1,8}", "[a-z0-9]{1,8}", 0..5)) {
            let drive = Drive { file, options };
            prop_assert_eq!(Drive::parse(&drive.print()), drive);
        }
    }
}
