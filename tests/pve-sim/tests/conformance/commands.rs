//! Recorded commands, each by the call that does the same. A command prints what a call answers or its task logs, and tells a refusal on standard error.

use serde_json::{Map, Value, json};

use crate::golden::Record;

/// Words of the command, then the call: method, path with the positional arguments by name, and the names of the others that are positional.
pub(crate) const TABLE: [(&str, &str, &str, &[&str]); 39] = [
    ("qm agent", "POST", "/nodes/pve1/qemu/{vmid}/agent/{command}", &["vmid", "command"]),
    ("qm cloudinit dump", "GET", "/nodes/pve1/qemu/{vmid}/cloudinit/dump", &["vmid", "type"]),
    ("qm cloudinit pending", "GET", "/nodes/pve1/qemu/{vmid}/cloudinit", &["vmid"]),
    ("qm cloudinit update", "PUT", "/nodes/pve1/qemu/{vmid}/cloudinit", &["vmid"]),
    ("qm clone", "POST", "/nodes/pve1/qemu/{vmid}/clone", &["vmid", "newid"]),
    ("qm config", "GET", "/nodes/pve1/qemu/{vmid}/config", &["vmid"]),
    ("qm create", "POST", "/nodes/pve1/qemu", &["vmid"]),
    ("qm delsnapshot", "DELETE", "/nodes/pve1/qemu/{vmid}/snapshot/{snapname}", &["vmid", "snapname"]),
    ("qm destroy", "DELETE", "/nodes/pve1/qemu/{vmid}", &["vmid"]),
    ("qm disk move", "POST", "/nodes/pve1/qemu/{vmid}/move_disk", &["vmid", "disk", "storage"]),
    ("qm disk resize", "PUT", "/nodes/pve1/qemu/{vmid}/resize", &["vmid", "disk", "size"]),
    ("qm disk unlink", "PUT", "/nodes/pve1/qemu/{vmid}/unlink", &["vmid"]),
    ("qm guest cmd", "POST", "/nodes/pve1/qemu/{vmid}/agent/{command}", &["vmid", "command"]),
    ("qm list", "GET", "/nodes/pve1/qemu", &[]),
    ("qm listsnapshot", "GET", "/nodes/pve1/qemu/{vmid}/snapshot", &["vmid"]),
    ("qm move-disk", "POST", "/nodes/pve1/qemu/{vmid}/move_disk", &["vmid", "disk", "storage"]),
    ("qm pending", "GET", "/nodes/pve1/qemu/{vmid}/pending", &["vmid"]),
    ("qm reboot", "POST", "/nodes/pve1/qemu/{vmid}/status/reboot", &["vmid"]),
    ("qm reset", "POST", "/nodes/pve1/qemu/{vmid}/status/reset", &["vmid"]),
    ("qm resize", "PUT", "/nodes/pve1/qemu/{vmid}/resize", &["vmid", "disk", "size"]),
    ("qm resume", "POST", "/nodes/pve1/qemu/{vmid}/status/resume", &["vmid"]),
    ("qm rollback", "POST", "/nodes/pve1/qemu/{vmid}/snapshot/{snapname}/rollback", &["vmid", "snapname"]),
    ("qm set", "POST", "/nodes/pve1/qemu/{vmid}/config", &["vmid"]),
    ("qm shutdown", "POST", "/nodes/pve1/qemu/{vmid}/status/shutdown", &["vmid"]),
    ("qm snapshot", "POST", "/nodes/pve1/qemu/{vmid}/snapshot", &["vmid", "snapname"]),
    ("qm start", "POST", "/nodes/pve1/qemu/{vmid}/status/start", &["vmid"]),
    ("qm status", "GET", "/nodes/pve1/qemu/{vmid}/status/current", &["vmid"]),
    ("qm stop", "POST", "/nodes/pve1/qemu/{vmid}/status/stop", &["vmid"]),
    ("qm suspend", "POST", "/nodes/pve1/qemu/{vmid}/status/suspend", &["vmid"]),
    ("qm template", "POST", "/nodes/pve1/qemu/{vmid}/template", &["vmid"]),
    ("qm unlink", "PUT", "/nodes/pve1/qemu/{vmid}/unlink", &["vmid"]),
    ("qm unlock", "PUT", "/nodes/pve1/qemu/{vmid}/config", &["vmid"]),
    ("pvesm alloc", "POST", "/nodes/pve1/storage/{storage}/content", &["storage", "vmid", "filename", "size"]),
    ("pvesm free", "DELETE", "/nodes/pve1/storage/{storage}/content/{volume}", &["volume"]),
    ("pvesm list", "GET", "/nodes/pve1/storage/{storage}/content", &["storage"]),
    ("pvesh get", "GET", "{path}", &["path"]),
    ("pvesh create", "POST", "{path}", &["path"]),
    ("pvesh set", "PUT", "{path}", &["path"]),
    ("pvesh delete", "DELETE", "{path}", &["path"]),
];

/// The call that does what a command does; none if there is none.
pub(crate) fn call(record: &Record) -> Option<Record> {
    let (words, method, path, positional) = TABLE.iter().find(|(words, ..)| {
        let words: Vec<&str> = words.split(' ').collect();
        record.argv.len() >= words.len() && words.iter().zip(&record.argv).all(|(word, given)| word == given)
    })?;
    let mut path = (*path).to_owned();
    let mut params = Map::new();
    let mut rest = record.argv[words.split(' ').count()..].iter().peekable();
    let mut names = positional.iter();
    while let Some(argument) = rest.next() {
        if let Some(option) = argument.strip_prefix("--") {
            // An option without a value is a flag.
            let value = if rest.peek().is_none_or(|next| next.starts_with("--")) { "1" } else { rest.next()? };
            if !matches!(option, "output-format" | "verbose" | "quiet" | "noout") {
                params.insert(option.to_owned(), json!(value));
            }
            continue;
        }
        let name = names.next()?;
        if path.contains(&format!("{{{name}}}")) {
            path = path.replace(&format!("{{{name}}}"), argument);
        } else {
            params.insert((*name).to_owned(), json!(argument));
        }
    }
    if *words == "qm unlock" {
        params.extend([(String::from("delete"), json!("lock")), (String::from("skiplock"), json!("1"))]);
    }
    if path.contains('{') {
        return None;
    }
    let params = if params.is_empty() { Value::Null } else { Value::Object(params) };
    Some(Record { name: record.name.clone(), method: Some((*method).to_owned()), path: Some(path), params, ..record.clone() })
}

/// What a command says when it is refused: the last lines of its standard error, without what only a command line says.
pub(crate) fn refusal(record: &Record) -> String {
    let text = record.stderr.as_ref().and_then(Value::as_str).unwrap_or_default();
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with("400 Parameter verification failed."));
    let text = lines.collect::<Vec<_>>().join("\n");
    text.strip_prefix("403 ").unwrap_or(&text).to_owned()
}

/// The lines that a command printed, which are those of the task's log.
pub(crate) fn printed(record: &Record) -> Vec<String> {
    let text = record.stdout.as_ref().and_then(Value::as_str).unwrap_or_default();
    text.lines().filter(|line| !line.starts_with("\"UPID:") && !line.starts_with("UPID:")).map(str::to_owned).collect()
}
