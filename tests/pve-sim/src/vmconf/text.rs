//! The text form of a configuration: description as comments, sorted `key: value` lines, then `[PENDING]` and the snapshots.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::{Section, VmConfig, digest};

/// What a description's line does not hold as it is. Line ends separate lines; carriage returns and tabs stay.
const ESCAPED: &AsciiSet = &CONTROLS.remove(b'\n').remove(b'\r').remove(b'\t').add(b'%').add(b':');

enum At {
    Current,
    Pending,
    Snapshot(String),
    CloudInit,
    Nowhere,
}

pub(super) fn parse(text: &str) -> VmConfig {
    let mut config = VmConfig { digest: digest(text), ..VmConfig::default() };
    let mut at = At::Current;
    let mut description: Option<String> = None;
    for line in text.lines() {
        if let Some(name) = section_name(line) {
            close(&mut config, &at, description.take());
            at = match name {
                "PENDING" => At::Pending,
                "special:cloudinit" => {
                    config.cloudinit_added.get_or_insert_default();
                    At::CloudInit
                }
                name if name.starts_with("special:") => At::Nowhere,
                name => {
                    config.snapshots.entry(name.to_owned()).or_default();
                    At::Snapshot(name.to_owned())
                }
            };
        } else if let Some(comment) = line.strip_prefix('#') {
            let text = description.get_or_insert_default();
            text.push_str(&percent_decode_str(comment).decode_utf8_lossy());
            text.push('\n');
        } else if let Some((key, value)) = key_and_value(line) {
            let values = match &at {
                At::Current => &mut config.values,
                At::Pending if key == "delete" => {
                    let keys = value.split([',', ' ', ';']).filter(|key| !key.is_empty());
                    config.pending_delete = keys.map(|key| (key.trim_start_matches('!').to_owned(), key.starts_with('!'))).collect();
                    continue;
                }
                At::Pending => &mut config.pending,
                At::Snapshot(name) => &mut config.snapshots.entry(name.clone()).or_default().values,
                At::CloudInit => {
                    config.cloudinit_added.get_or_insert_default().extend(value.split(',').map(str::to_owned));
                    continue;
                }
                At::Nowhere => continue,
            };
            // An empty boot order is one; any other option that is empty does not pass its check.
            if value.trim().is_empty() && key != "boot" {
                continue;
            }
            let key = if key == "cdrom" { "ide2" } else { key };
            values.insert(key.to_owned(), value.to_owned());
        }
    }
    close(&mut config, &at, description);
    config
}

fn close(config: &mut VmConfig, at: &At, description: Option<String>) {
    let description = description.map(|text| text.strip_suffix('\n').unwrap_or(&text).to_owned());
    match at {
        At::Current => config.description = description.or(config.description.take()),
        At::Snapshot(name) => config.snapshots.entry(name.clone()).or_default().description = description,
        At::Pending => {
            if let Some(text) = description {
                config.pending.insert(String::from("description"), text);
            }
        }
        At::CloudInit | At::Nowhere => {}
    }
}

fn section_name(line: &str) -> Option<&str> {
    let name = line.strip_prefix('[')?.trim_end().strip_suffix(']')?;
    let fits = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':'));
    fits.then_some(name)
}

/// `key: value`. A value of blanks alone is one blank, as PVE's pattern reads it.
fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let (key, rest) = line.split_once(':')?;
    let stem = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let fits = stem.starts_with(|c: char| c.is_ascii_lowercase())
        && stem.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'-' | b'_') || b.is_ascii_digit());
    let value = rest.trim();
    let value = if value.is_empty() { rest.get(rest.len().checked_sub(1)?..)? } else { value };
    fits.then_some((key, value))
}

pub(super) fn print(config: &VmConfig) -> String {
    let mut text = String::new();
    comment(&mut text, config.description.as_deref());
    for (key, value) in &config.values {
        line(&mut text, key, value);
    }
    if !config.pending.is_empty() || !config.pending_delete.is_empty() {
        text.push_str("\n[PENDING]\n");
        comment(&mut text, config.pending.get("description").map(String::as_str));
        let delete: Vec<String> =
            config.pending_delete.iter().map(|(key, force)| format!("{}{key}", if *force { "!" } else { "" })).collect();
        let mut delete = (!delete.is_empty()).then(|| delete.join(","));
        for (key, value) in config.pending.iter().filter(|(key, _)| *key != "description") {
            if key.as_str() > "delete"
                && let Some(keys) = delete.take()
            {
                line(&mut text, "delete", &keys);
            }
            line(&mut text, key, value);
        }
        if let Some(keys) = delete {
            line(&mut text, "delete", &keys);
        }
    }
    if let Some(added) = &config.cloudinit_added {
        text.push_str("\n[special:cloudinit]\n");
        if !added.is_empty() {
            line(&mut text, "added", &added.iter().cloned().collect::<Vec<_>>().join(","));
        }
    }
    for (name, Section { description, values }) in &config.snapshots {
        text += &format!("\n[{name}]\n");
        comment(&mut text, description.as_deref());
        for (key, value) in values {
            line(&mut text, key, value);
        }
    }
    text
}

fn line(text: &mut String, key: &str, value: &str) {
    *text += &format!("{key}: {value}\n");
}

fn comment(text: &mut String, description: Option<&str>) {
    for line in description.into_iter().flat_map(|text| text.strip_suffix('\n').unwrap_or(text).split('\n')) {
        *text += &format!("#{}\n", utf8_percent_encode(line, ESCAPED));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_recorded_file_is_read_and_written() {
        let text =
            "#first\n#<!-- opt {\"a\"%3A[1,2]} -->\n#last %C3%BC\nboot: order=scsi0;net0\nkvm: 0\nname: lnk\n\n[PENDING]\ndelete: !scsi1\n";
        let config = parse(text);
        assert_eq!(config.description.as_deref(), Some("first\n<!-- opt {\"a\":[1,2]} -->\nlast ü"));
        assert_eq!((config.get("kvm"), config.pending_delete.get("scsi1")), (Some("0"), Some(&true)));
        assert_eq!(print(&config), text);
    }

    #[test]
    fn a_clone_in_the_making_is_read() {
        let config = parse("# qmclone temporary file\nlock: clone\n");
        assert_eq!((config.description.as_deref(), config.lock()), (Some(" qmclone temporary file"), Some("clone")));
        assert_eq!(config.digest, "eb54fb9d9f120ba0c3bdf694f73b10002c375c38");
    }

    #[test]
    fn an_empty_boot_order_grows_a_blank_as_on_a_real_host() {
        assert_eq!(print(&parse("boot: \n")), "boot:  \n");
        assert_eq!(print(&parse("boot:  \n")), "boot:  \n");
        assert_eq!(parse("boot:\n").get("boot"), None);
    }

    #[test]
    fn cards_added_while_running_are_kept() {
        let text = "name: a\n\n[PENDING]\ncores: 2\n\n[special:cloudinit]\nadded: net1,net3\n";
        assert_eq!(print(&parse(text)), text);
        assert_eq!(print(&parse("\n[special:cloudinit]\n")), "\n[special:cloudinit]\n");
    }

    #[test]
    fn snapshots_and_lines_that_are_none() {
        let text = "name: a\nparent: s1\n\n[s1]\n#first try\nname: a\nsnaptime: 1795416931\n";
        assert_eq!(print(&parse(text)), text);
        assert_eq!(parse("garbage\nName: x\n: y\nname: a\n").values.len(), 1);
    }

    fn key() -> impl Strategy<Value = String> {
        "[a-z][a-z_]{0,8}[0-9]{0,2}".prop_filter("names of their own", |key| key != "delete" && key != "cdrom" && key != "description")
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            values in prop::collection::btree_map(key(), "[!-~]([ -~]{0,20}[!-~])?", 0..12),
            pending in prop::collection::btree_map(key(), "[!-~]{1,20}", 0..4),
            gone in prop::collection::btree_map(key(), any::<bool>(), 0..3),
            description in prop::option::of("[^\\n\\r\u{85}\u{2028}\u{2029}]{1,20}(\n[^\\n\\r]{0,20}){0,3}[a-z]"),
            snapshot in prop::option::of(prop::collection::btree_map(key(), "[!-~]{1,9}", 0..4)),
        ) {
            let snapshots = snapshot.map(|values| (String::from("snap1"), Section { description: None, values })).into_iter().collect();
            let config = VmConfig { description, values, pending, pending_delete: gone, cloudinit_added: None, snapshots, digest: String::new() };
            let read = parse(&print(&config));
            prop_assert_eq!(VmConfig { digest: String::new(), ..read }, config);
        }

        #[test]
        fn no_text_makes_the_parser_fail(text in "\\PC*(\n\\PC*){0,8}") {
            let once = print(&parse(&text));
            prop_assert_eq!(print(&parse(&once)), once);
        }
    }
}
