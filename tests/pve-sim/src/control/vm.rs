//! Verbs that concern a VM: what people, other nodes, backups, HA and replication do to it.

use std::io;

use super::Sim;
use crate::{
    guest,
    ha::{self, config_path},
};

const RESOURCES: &str = "ha/resources.cfg";
const REPLICATION: &str = "replication.cfg";

impl Sim {
    fn text(&self, path: &str) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.store.read_path(path)?).into_owned())
    }

    pub(super) fn write_file(&self, path: &str, content: &str, node: Option<&str>) -> io::Result<()> {
        if let Some(node) = node {
            let index = self.node(node)?;
            if !self.store.with_nodes(|nodes| nodes[index].quorate) {
                return Err(nix::errno::Errno::EACCES.into());
            }
        }
        Ok(self.store.replace(path, content.as_bytes())?)
    }

    pub(super) fn set_config(&self, vmid: u32, key: &str, value: Option<&str>) -> io::Result<()> {
        let path = config_path(self.vm(vmid)?.node(), vmid);
        let text = set_line(&self.text(&path)?, key, value);
        Ok(self.store.replace(&path, text.as_bytes())?)
    }

    pub(super) fn migrate(&self, vmid: u32, to: &str) -> io::Result<()> {
        self.node(to)?;
        let old = self.vm(vmid)?;
        if old.node() == to {
            return Ok(());
        }
        let ran = guest::running(&old, vmid).is_some();
        // As a live migration: the config moves while the guest is handed over.
        self.store.rename_path(&config_path(old.node(), vmid), &config_path(to, vmid))?;
        if ran {
            self.start_guest(vmid)?;
            guest::quit(&old, vmid)?;
        }
        Ok(())
    }

    pub(super) fn duplicate(&self, vmid: u32, new: u32, node: Option<&str>) -> io::Result<()> {
        let from = self.vm(vmid)?;
        let node = node.unwrap_or(from.node());
        self.node(node)?;
        if self.store.vm_node(new).is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("VM {new} exists already")));
        }
        let text = self.text(&config_path(from.node(), vmid))?;
        Ok(self.store.replace(&config_path(node, new), text.as_bytes())?)
    }

    pub(super) fn start_guest(&self, vmid: u32) -> io::Result<u32> {
        let layout = self.vm(vmid)?;
        let text = self.text(&config_path(layout.node(), vmid))?;
        guest::spawn(&layout, vmid, &guest::Options::of_config(&text))
    }

    pub(super) fn ha_add(&self, vmid: u32, state: &str) -> io::Result<()> {
        let mut resources = ha::parse(&self.text(RESOURCES)?);
        resources.retain(|resource| resource.vmid != vmid);
        resources.push(ha::Resource::new(vmid, state));
        Ok(self.store.replace(RESOURCES, ha::format(&resources).as_bytes())?)
    }

    pub(super) fn ha_remove(&self, vmid: u32) -> io::Result<()> {
        let mut resources = ha::parse(&self.text(RESOURCES)?);
        resources.retain(|resource| resource.vmid != vmid);
        Ok(self.store.replace(RESOURCES, ha::format(&resources).as_bytes())?)
    }

    pub(super) fn replication_add(&self, vmid: u32, target: &str) -> io::Result<()> {
        let source = self.vm(vmid)?;
        let mut text = self.text(REPLICATION)?;
        text.push_str(&format!("local: {vmid}-0\n\ttarget {target}\n\tsource {}\n\n", source.node()));
        Ok(self.store.replace(REPLICATION, text.as_bytes())?)
    }

    pub(super) fn replication_remove(&self, vmid: u32) -> io::Result<()> {
        let text = self.text(REPLICATION)?;
        let job = format!("local: {vmid}-");
        let kept: Vec<&str> = text.split_inclusive("\n\n").filter(|section| !section.trim_start().starts_with(&job)).collect();
        Ok(self.store.replace(REPLICATION, kept.concat().as_bytes())?)
    }
}

/// The config with one line set or removed: sorted, comments first, snapshots untouched, as PVE writes it.
fn set_line(text: &str, key: &str, value: Option<&str>) -> String {
    let (current, snapshots) = text.find("\n[").map_or((text, ""), |at| text.split_at(at + 1));
    let (comments, lines): (Vec<&str>, Vec<&str>) = current.lines().filter(|line| !line.is_empty()).partition(|line| line.starts_with('#'));
    let mut lines: Vec<String> = lines.into_iter().filter(|line| line.split(':').next() != Some(key)).map(str::to_owned).collect();
    lines.extend(value.map(|value| format!("{key}: {value}")));
    lines.sort_by(|a, b| a.split(':').next().cmp(&b.split(':').next()));
    let mut out: String =
        comments.into_iter().map(|line| format!("{line}\n")).chain(lines.into_iter().map(|line| format!("{line}\n"))).collect();
    if !snapshots.is_empty() {
        out.push('\n');
        out.push_str(snapshots);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_set_in_order_and_removed_again() {
        let text = "#hello\ncores: 1\nname: x\n\n[s1]\nlock: snapshot\n";
        let locked = set_line(text, "lock", Some("backup"));
        assert_eq!(locked, "#hello\ncores: 1\nlock: backup\nname: x\n\n[s1]\nlock: snapshot\n");
        assert_eq!(set_line(&locked, "lock", None), text);
    }
}
