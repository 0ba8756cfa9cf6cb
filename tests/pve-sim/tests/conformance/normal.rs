//! Comparison of what was recorded with what came now. Left out of it are only times, process ids, UPIDs, ports, measured sizes and counters, and random ids;
//! order counts only where PVE has one (most of its lists come in the random order of a Perl hash).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Times, process ids and measured values, by the names of their fields.
const VARYING: [&str; 39] = [
    "starttime",
    "endtime",
    "ctime",
    "uptime",
    "time",
    "pid",
    "pstart",
    "last_try",
    "last_sync",
    "next_sync",
    "used",
    "avail",
    "used_fraction",
    "free",
    "available",
    "cpu",
    "mem",
    "memhost",
    "netin",
    "netout",
    "diskread",
    "diskwrite",
    "idle",
    "wait",
    "pressurecpusome",
    "pressurecpufull",
    "pressureiosome",
    "pressureiofull",
    "pressurememorysome",
    "pressurememoryfull",
    "freemem",
    "ballooninfo",
    "blockstat",
    "nics",
    "balloon_min",
    "loadavg",
    "ssl_fingerprint",
    "uid",
    "proxmox-support",
];
/// Further ones in entries of nodes and storages.
const VARYING_OF_HOSTS: [&str; 5] = ["disk", "maxdisk", "maxmem", "maxcpu", "total"];
/// Comma lists that PVE prints in any order.
const SETS: [&str; 2] = ["content", "nodes"];
/// What tells the entries of a list apart.
const IDENTITIES: [&str; 10] = ["volid", "sid", "vmid", "id", "storage", "name", "iface", "subdir", "node", "key"];

/// Random ids that were seen as a pair: recorded, and now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pairs(BTreeMap<String, String>);

impl Pairs {
    fn agree(&mut self, recorded: &str, now: &str) -> bool {
        if recorded == now {
            return true;
        }
        self.0.insert(recorded.to_owned(), now.to_owned());
        true
    }

    /// What a recorded id is called now.
    pub(crate) fn now(&self, recorded: &str) -> Option<&str> {
        self.0.get(recorded).map(String::as_str)
    }
}

/// Where the two differ: a path into the body, and what stands there.
pub(crate) type Difference = (String, String, String);

/// Compares two bodies.
pub(crate) fn compare(recorded: &Value, now: &Value, ordered: bool, pairs: &mut Pairs) -> Vec<Difference> {
    let mut found = Vec::new();
    walk("", recorded, now, ordered, pairs, &mut found);
    found
}

fn walk(at: &str, recorded: &Value, now: &Value, ordered: bool, pairs: &mut Pairs, found: &mut Vec<Difference>) {
    let mut differ = |what: &str| found.push((format!("{at}{what}"), short(recorded), short(now)));
    match (recorded, now) {
        (Value::Object(old), Value::Object(new)) => {
            let lists = |map: &Map<String, Value>| {
                map.get("data").and_then(Value::as_array).is_some_and(|list| list.iter().any(|e| e["t"].is_string()))
            };
            if lists(old) && lists(new) {
                return compare_logs(at, old, new, pairs, found);
            }
            let of_host = old.get("type").is_some_and(|kind| kind == "node" || kind == "storage")
                || old.contains_key("avail")
                || old.contains_key("free");
            for (key, value) in old {
                let place = format!("{at}.{key}");
                match new.get(key) {
                    None => found.push((place, short(value), String::from("(missing)"))),
                    // A file's size on the disk; an image's is what the guest sees, and counts.
                    Some(other)
                        if varies(key, of_host) || key == "size" && old.get("content").is_some_and(|content| content == "import") =>
                    {
                        let same_kind = value.is_null() == other.is_null() && value.is_string() == other.is_string();
                        if !same_kind {
                            found.push((place, short(value), short(other)));
                        }
                    }
                    Some(other) if SETS.contains(&key.as_str()) && value.is_string() => {
                        if set(value) != set(other) {
                            found.push((place, short(value), short(other)));
                        }
                    }
                    // How many there were in all depends on what ran before.
                    Some(other) if key == "total" && ordered && at.is_empty() && other.is_number() => {}
                    Some(other) => walk(&place, value, other, ordered, pairs, found),
                }
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                found.push((format!("{at}.{key}"), String::from("(missing)"), short(value)));
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            let (old, new) = if ordered { (old.clone(), new.clone()) } else { (sorted(old), sorted(new)) };
            let (names, others) = (identities(&old), identities(&new));
            if names != others {
                return differ(&format!("[list: {} != {}]", names.join(" "), others.join(" ")));
            }
            for (index, (one, other)) in old.iter().zip(&new).enumerate() {
                let name = identity(one);
                let place = if name.is_empty() { format!("{at}[{index}]") } else { format!("{at}[{name}]") };
                walk(&place, one, other, ordered, pairs, found);
            }
        }
        (Value::String(old), Value::String(new)) => {
            if !same_text(old, new, pairs) {
                differ("");
            }
        }
        (old, new) if old == new => {}
        _ => differ(""),
    }
}

fn short(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().take(400).collect()
}

fn varies(key: &str, of_host: bool) -> bool {
    VARYING.contains(&key) || of_host && VARYING_OF_HOSTS.contains(&key)
}

fn set(value: &Value) -> Vec<&str> {
    let mut parts: Vec<&str> = value.as_str().unwrap_or_default().split(',').collect();
    parts.sort_unstable();
    parts
}

fn identity(value: &Value) -> String {
    let found = IDENTITIES.iter().find_map(|key| value.get(key));
    found.map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned)).unwrap_or_default()
}

fn identities(list: &[Value]) -> Vec<String> {
    list.iter().enumerate().map(|(index, value)| if identity(value).is_empty() { index.to_string() } else { identity(value) }).collect()
}

fn sorted(list: &[Value]) -> Vec<Value> {
    let mut list = list.to_vec();
    list.sort_by_key(identity);
    list
}

fn compare_logs(at: &str, old: &Map<String, Value>, new: &Map<String, Value>, pairs: &mut Pairs, found: &mut Vec<Difference>) {
    let lines =
        |list: &Value| list.as_array().into_iter().flatten().filter_map(|entry| entry["t"].as_str().map(str::to_owned)).collect::<Vec<_>>();
    found.extend(compare_lines(&format!("{at}.log"), lines(&old["data"]), lines(&new["data"]), pairs));
}

fn is_progress(line: &str) -> bool {
    line.starts_with("transferred ") && line.ends_with("%)")
}

/// Compares the lines of two logs, with a copy's progress in one line: how often it is told depends on the disk's speed.
pub(crate) fn compare_lines(at: &str, mut old: Vec<String>, mut new: Vec<String>, pairs: &mut Pairs) -> Option<Difference> {
    for lines in [&mut old, &mut new] {
        lines.dedup_by(|one, before| is_progress(one) && is_progress(before));
    }
    for index in 0..old.len().max(new.len()) {
        let line = |lines: &[String]| lines.get(index).cloned().unwrap_or_else(|| String::from("(no line)"));
        let (one, other) = (line(&old), line(&new));
        let same = is_progress(&one) && is_progress(&other) || same_text(&one, &other, pairs);
        if !same {
            return Some((at.to_owned(), one, other));
        }
    }
    None
}

/// Whether two texts are the same but for what varies.
pub(crate) fn same_text(recorded: &str, now: &str, pairs: &mut Pairs) -> bool {
    let (old, new) = (tokens(recorded), tokens(now));
    old.0 == new.0 && old.1.iter().zip(&new.1).all(|(one, other)| pairs.agree(one, other))
}

/// The text with a mark for each thing that varies, and the random ids among them in their order.
fn tokens(text: &str) -> (String, Vec<String>) {
    let (mut plain, mut ids) = (String::new(), Vec::new());
    let mut rest = text;
    let mut before = ' ';
    while let Some(c) = rest.chars().next() {
        let boundary = !before.is_ascii_alphanumeric();
        if let Some((mark, length, is_id)) = boundary.then(|| token(rest)).flatten() {
            plain += mark;
            if is_id {
                ids.push(rest[..length].to_ascii_lowercase());
            }
            before = ' ';
            rest = &rest[length..];
        } else {
            plain.push(c);
            before = c;
            rest = &rest[c.len_utf8()..];
        }
    }
    (plain, ids)
}

/// What varies at the beginning of a text: its mark, its length, and whether it is an id that is paired.
fn token(text: &str) -> Option<(&'static str, usize, bool)> {
    let hex = |groups: &[usize], separator: u8| {
        let bytes = text.as_bytes();
        let mut at = 0;
        for (index, length) in groups.iter().enumerate() {
            if index > 0 {
                (bytes.get(at) == Some(&separator)).then_some(())?;
                at += 1;
            }
            bytes.get(at..at + length).filter(|part| part.iter().all(u8::is_ascii_hexdigit))?;
            at += length;
        }
        bytes.get(at).is_none_or(|b| !b.is_ascii_alphanumeric()).then_some(at)
    };
    let digits_behind = |word: &str| {
        let digits = text.strip_prefix(word)?.bytes().take_while(u8::is_ascii_digit).count();
        (digits > 0).then_some(word.len() + digits)
    };
    if let Some(rest) = text.strip_prefix("UPID:") {
        // node, pid, start of the process, start of the task: then what it is about, which counts.
        let (node, rest) = rest.split_once(':')?;
        let length = "UPID:".len() + node.len() + 1 + 27;
        let varying = rest.get(..27)?;
        return varying.bytes().all(|b| b.is_ascii_hexdigit() || b == b':').then_some(("UPID:<...>", length, false));
    }
    if let Some(at) = hex(&[8, 4, 4, 4, 12], b'-') {
        return Some(("<uuid>", at, true));
    }
    if let Some(at) = hex(&[40], b'-') {
        return Some(("<digest>", at, true));
    }
    if let Some(at) = hex(&[2, 2, 2, 2, 2, 2], b':') {
        return Some(("<mac>", at, true));
    }
    if text.starts_with("$5$") {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return Some(("<password>", end, false));
    }
    for (word, mark) in [
        ("tmp.", "tmp.<pid>"),
        ("ctime=", "ctime=<time>"),
        ("byte ", "byte <size>"),
        ("snaptime: ", "snaptime: <time>"),
        ("pid ", "pid <pid>"),
    ] {
        if let Some(length) = digits_behind(word) {
            return Some((mark, length, false));
        }
    }
    None
}
