//! Pools, as far as VMs join and leave them: lines `pool:<id>:<comment>:<vmids>:<storages>:` of `user.cfg`.

use std::{fs, path::PathBuf};

use crate::{api::Failure, layout::NodeLayout};

fn path(layout: &NodeLayout) -> PathBuf {
    layout.etc_pve().join("user.cfg")
}

/// Refuses a pool that does not exist.
///
/// # Errors
/// 403, as for a pool that the caller must not use.
pub(super) fn check(layout: &NodeLayout, pool: &str) -> Result<(), Failure> {
    let text = fs::read_to_string(path(layout)).unwrap_or_default();
    let known = text.lines().any(|line| line.split(':').take(2).eq(["pool", pool]));
    if known { Ok(()) } else { Err(Failure::forbidden(&format!("pool '{pool}' does not exist"))) }
}

/// Puts a VM into a pool.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn join(layout: &NodeLayout, pool: &str, vmid: u32) -> Result<(), Failure> {
    change(layout, |id, members| {
        if id == pool && !members.contains(&vmid) {
            members.push(vmid);
            members.sort_unstable();
        }
    })
}

/// Takes a VM out of every pool.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn leave(layout: &NodeLayout, vmid: u32) -> Result<(), Failure> {
    change(layout, |_, members| members.retain(|member| *member != vmid))
}

fn change(layout: &NodeLayout, apply: impl Fn(&str, &mut Vec<u32>)) -> Result<(), Failure> {
    let Ok(text) = fs::read_to_string(path(layout)) else { return Ok(()) };
    let line = |line: &str| {
        let parts: Vec<&str> = line.split(':').collect();
        let ["pool", id, comment, vms, rest @ ..] = &parts[..] else { return line.to_owned() };
        let mut members: Vec<u32> = vms.split(',').filter_map(|vmid| vmid.parse().ok()).collect();
        apply(id, &mut members);
        let members = members.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        format!("pool:{id}:{comment}:{members}:{}", rest.join(":"))
    };
    let changed: String = text.lines().map(|text| line(text) + "\n").collect();
    if changed != text {
        let temporary = path(layout).with_extension(format!("cfg.tmp.{}", std::process::id()));
        fs::write(&temporary, changed)?;
        fs::rename(temporary, path(layout))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_vm_joins_and_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(dir.path(), "n");
        fs::create_dir_all(layout.etc_pve()).unwrap();
        let text = "user:root@pam:1:0::::::\n\npool:p1:x:140::\n";
        fs::write(path(&layout), text).unwrap();
        assert!(check(&layout, "p1").is_ok() && check(&layout, "nope").is_err());
        join(&layout, "p1", 101).unwrap();
        assert!(fs::read_to_string(path(&layout)).unwrap().ends_with("pool:p1:x:101,140::\n"));
        leave(&layout, 101).unwrap();
        assert_eq!(fs::read_to_string(path(&layout)).unwrap(), text);
    }
}
