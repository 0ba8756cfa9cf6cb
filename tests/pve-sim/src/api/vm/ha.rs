//! What the HA configuration says about a VM, and requests to it. Nobody carries them out here: that is the HA manager's part.

use std::fs;

use serde_json::{Value, json};

use crate::{api::Failure, layout::NodeLayout};

/// The properties of a VM's resource in `ha/resources.cfg`, none if it is not managed.
pub(super) fn resource(layout: &NodeLayout, vmid: u32) -> Option<Vec<(String, String)>> {
    let text = fs::read_to_string(layout.etc_pve().join("ha/resources.cfg")).ok()?;
    let mut lines = text.lines().skip_while(|line| !is_head(line, vmid));
    lines.next()?;
    let own = lines.take_while(|line| line.starts_with([' ', '\t']));
    Some(own.filter_map(|line| line.trim().split_once(' ')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

fn is_head(line: &str, vmid: u32) -> bool {
    line.strip_prefix("vm:").is_some_and(|id| id.trim().parse() == Ok(vmid))
}

/// Whether the HA manager looks after a VM.
pub(super) fn is_managed(layout: &NodeLayout, vmid: u32) -> bool {
    resource(layout, vmid).is_some_and(|resource| !resource.iter().any(|(key, value)| key == "state" && value == "ignored"))
}

/// The `ha` member of a VM's status: what the HA manager last said about it.
pub(super) fn json(layout: &NodeLayout, vmid: u32) -> Value {
    if !is_managed(layout, vmid) {
        return json!({"managed": 0});
    }
    let text = fs::read(layout.etc_pve().join("ha/manager_status")).unwrap_or_default();
    let status: Value = serde_json::from_slice(&text).unwrap_or_default();
    json!({"managed": 1, "state": status["service_status"][format!("vm:{vmid}")]["state"]})
}

/// Asks for a VM to be started.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn request_start(layout: &NodeLayout, vmid: u32) -> Result<(), Failure> {
    let path = layout.etc_pve().join("ha/resources.cfg");
    let mut lines: Vec<String> = Vec::new();
    let mut own: Option<Vec<String>> = None;
    let text = fs::read_to_string(&path)?;
    for line in text.lines().chain([""]) {
        if let Some(properties) = &mut own {
            if line.starts_with([' ', '\t']) {
                properties.push(line.trim().to_owned());
                continue;
            }
            properties.retain(|property| !property.starts_with("state "));
            properties.push(String::from("state started"));
            properties.sort_unstable();
            lines.extend(own.take().into_iter().flatten().map(|property| format!("\t{property}")));
        }
        lines.push(line.to_owned());
        if is_head(line, vmid) {
            own = Some(Vec::new());
        }
    }
    replace(&path, &lines.join("\n"))
}

/// Asks for a VM to be stopped, with `timeout` seconds for its own shutdown (0: at once).
///
/// # Errors
/// When the file cannot be written.
pub(super) fn request_stop(layout: &NodeLayout, vmid: u32, timeout: u64) -> Result<(), Failure> {
    let path = layout.etc_pve().join("ha/crm_commands");
    let queued = fs::read_to_string(&path).unwrap_or_default();
    replace(&path, &format!("{queued}stop vm:{vmid} {timeout}\n"))
}

/// Takes a VM out of the configuration.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn remove(layout: &NodeLayout, vmid: u32) -> Result<(), Failure> {
    let path = layout.etc_pve().join("ha/resources.cfg");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let mut inside = false;
    let mut kept = String::new();
    for line in text.lines() {
        inside = if line.is_empty() || line.starts_with([' ', '\t']) { inside } else { is_head(line, vmid) };
        if !inside {
            kept += line;
            kept.push('\n');
        }
    }
    if kept == text {
        return Ok(());
    }
    let rules = layout.etc_pve().join("ha/rules.cfg");
    if !rules.exists() {
        fs::write(rules, "")?;
    }
    replace(&path, &kept)
}

fn replace(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    let temporary = path.with_extension(format!("cfg.tmp.{}", std::process::id()));
    fs::write(&temporary, text)?;
    Ok(fs::rename(temporary, path)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn requests_are_queued_as_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(dir.path(), "n");
        let folder = layout.etc_pve().join("ha");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("resources.cfg"), "vm: 401\n\tcomment c\n\tstate stopped\n\nvm: 403\n\n").unwrap();
        assert!(is_managed(&layout, 401) && !is_managed(&layout, 40));
        request_start(&layout, 401).unwrap();
        request_start(&layout, 403).unwrap();
        let text = fs::read_to_string(folder.join("resources.cfg")).unwrap();
        assert_eq!(text, "vm: 401\n\tcomment c\n\tstate started\n\nvm: 403\n\tstate started\n\n");
        request_stop(&layout, 401, 0).unwrap();
        request_stop(&layout, 401, 5).unwrap();
        assert_eq!(fs::read_to_string(folder.join("crm_commands")).unwrap(), "stop vm:401 0\nstop vm:401 5\n");
        remove(&layout, 401).unwrap();
        assert_eq!(fs::read_to_string(folder.join("resources.cfg")).unwrap(), "vm: 403\n\tstate started\n\n");
    }
}
