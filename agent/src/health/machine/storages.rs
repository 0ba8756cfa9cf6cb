//! The storages of PVE, as this node sees them.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    source::{Look, check},
    words::{Limits, Worst, bytes, percent, unknown},
};
use crate::{
    error::Error,
    health::{Check, Finding, Pace, Source, State},
    host::pve::{Pve, StorageInfo},
};

const STORAGES: Check =
    check("host.storages", "VMs whose disks lie on a storage that is not there do not start, and those on a full one stop with an error.");

/// Whether space is given away as a whole when a volume is made: a full one hurts no VM that is there. Volumes of ZFS reserve theirs, but for
/// `sparse`; how full the pool is in truth tells `host.zfs`.
fn given_away(storage: &StorageInfo, sparse: &BTreeSet<String>) -> bool {
    match storage.kind.as_str() {
        "lvm" => true,
        "zfspool" => !sparse.contains(&storage.id),
        _ => false,
    }
}

/// How full a storage is, percent. `None`: kinds without a size of their own (iSCSI) tell none.
fn usage(storage: &StorageInfo) -> Option<f64> {
    (storage.total != 0).then(|| percent(storage.total - storage.available.min(storage.total), storage.total))
}

/// Which storages of ZFS reserve nothing; asked only of those whose usage is worth a word.
async fn sparse(pve: &dyn Pve, storages: &[StorageInfo], limits: Limits) -> BTreeSet<String> {
    let mut sparse = BTreeSet::new();
    let full = |s: &&StorageInfo| s.enabled && s.active && usage(s).is_some_and(|u| limits.state(u) != State::Ok);
    for storage in storages.iter().filter(|s| s.kind == "zfspool").filter(full) {
        let config = pve.storage_config(&storage.id).await;
        if config.is_ok_and(|c| c.options.get("sparse").is_some_and(|v| ["1", "yes", "true", "on"].contains(&v.as_str()))) {
            sparse.insert(storage.id.clone());
        }
    }
    sparse
}

pub(super) fn source(pace: Pace, pve: &Arc<dyn Pve>, limits: Limits) -> Arc<dyn Source> {
    let pve = Arc::clone(pve);
    let look = move || {
        let pve = Arc::clone(&pve);
        async move {
            let storages = pve.storages().await;
            let sparse = sparse(pve.as_ref(), storages.as_deref().unwrap_or_default(), limits).await;
            vec![decide(&storages, &sparse, limits)]
        }
    };
    Look::new("storages", &[STORAGES], pace, look).done()
}

/// PVE lists only storages of this node. One that is disabled is none that anybody misses.
fn decide(storages: &Result<Vec<StorageInfo>, Error>, sparse: &BTreeSet<String>, limits: Limits) -> Finding {
    let id = STORAGES.id;
    let storages = match storages {
        Ok(storages) => storages,
        Err(error) => return unknown(id, error),
    };
    let mut worst = Worst::new();
    let (mut active, mut fullest): (u32, Option<(f64, &str)>) = (0, None);
    for storage in storages.iter().filter(|s| s.enabled) {
        let name = storage.id.as_str();
        if !storage.active {
            worst.add(State::Failed, name, format!("{name} ({}) is not active", storage.kind));
            continue;
        }
        active += 1;
        let Some(usage) = usage(storage) else { continue };
        let state = match limits.state(usage) {
            State::Failed if given_away(storage, sparse) => State::Degraded,
            State::Degraded if given_away(storage, sparse) => State::Ok,
            state => state,
        };
        if state != State::Ok {
            worst.add(state, name, format!("{name} ({}, {}) is {usage:.0} % full", storage.kind, bytes(storage.total)));
        }
        if fullest.is_none_or(|(most, _)| usage > most) {
            fullest = Some((usage, name));
        }
    }
    let fullest = fullest.map(|(usage, name)| format!(", {name} is the fullest with {usage:.0} %")).unwrap_or_default();
    let remedy = "of one that is not active: `pvesm status` and its mount, network or pool, or disable it (`pvesm set ID --disable 1`), or restrict it to \
                  other nodes (`--nodes`); of a full one: remove volumes, backups and images, or extend it";
    worst.finding(id, || format!("{active} active{fullest}"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Trouble;

    const LIMITS: Limits = Limits { warning: 85, critical: 95 };

    fn storage(id: &str, kind: &str, used: u64) -> StorageInfo {
        StorageInfo {
            id: id.into(),
            kind: kind.into(),
            content: vec![],
            active: true,
            enabled: true,
            shared: false,
            total: 1000,
            available: 1000 - used,
        }
    }

    #[test]
    fn each_state_of_a_storage_has_a_meaning() {
        let table = [
            (storage("local", "dir", 100), State::Ok),
            (storage("local", "dir", 850), State::Degraded),
            (storage("local", "dir", 950), State::Failed),
            (StorageInfo { active: false, ..storage("nfs", "nfs", 0) }, State::Failed),
            // Disabled on purpose; PVE tells such a one as not active.
            (StorageInfo { active: false, enabled: false, ..storage("nfs", "nfs", 0) }, State::Ok),
            // Its space is given away as a whole.
            (storage("vg", "lvm", 900), State::Ok),
            (storage("vg", "lvm", 1000), State::Degraded),
            (storage("thin", "lvmthin", 960), State::Failed),
            // Reserved for volumes, not written.
            (storage("zfs", "zfspool", 900), State::Ok),
            (storage("zfs", "zfspool", 1000), State::Degraded),
            (storage("sparse", "zfspool", 900), State::Degraded),
            (storage("sparse", "zfspool", 960), State::Failed),
            // No size of its own.
            (StorageInfo { total: 0, available: 0, ..storage("san", "iscsi", 0) }, State::Ok),
            // Told while something is removed.
            (StorageInfo { total: 10, available: 20, ..storage("x", "dir", 0) }, State::Ok),
        ];
        let sparse = BTreeSet::from(["sparse".to_owned()]);
        for (storage, expected) in table {
            assert_eq!(decide(&Ok(vec![storage.clone()]), &sparse, LIMITS).state, expected, "{storage:?}");
        }
        assert_eq!(decide(&Ok(vec![]), &sparse, LIMITS).state, State::Ok);
    }

    #[test]
    fn the_worst_is_told_first_with_its_name() {
        let all = vec![storage("a", "dir", 900), storage("b", "dir", 10), StorageInfo { active: false, ..storage("c", "nfs", 0) }];
        let found = decide(&Ok(all), &BTreeSet::new(), LIMITS);
        assert_eq!(found.seen, "c (nfs) is not active; a (dir, 1000 B) is 90 % full");
        assert_eq!((found.state, found.subjects), (State::Failed, vec!["a".to_owned(), "c".to_owned()]));
    }

    #[test]
    fn what_pve_does_not_tell_is_unknown() {
        for error in
            [Error::PveDown { detail: "no answer within 15 s".into() }, Error::Look { trouble: Trouble::Silent, message: "late".into() }]
        {
            assert_eq!(decide(&Err(error), &BTreeSet::new(), LIMITS).state, State::Unknown);
        }
    }
}
