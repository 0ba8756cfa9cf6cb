//! The pools of ZFS.

use std::{path::Path, time::Duration};

use super::{ZfsPool, ZfsUsage, command, read};
use crate::error::{Error, Trouble};

/// The states of the imported pools, from the kernel module; `None`: there is no such module.
pub(super) fn states(proc: &Path) -> Result<Option<Vec<ZfsPool>>, Error> {
    let root = proc.join("spl/kstat/zfs");
    if !root.is_dir() {
        return Ok(None);
    }
    let mut pools = Vec::new();
    for name in read::names(&root)? {
        // Beside the pools' folders there are plain files; what is no pool has no state.
        if let Some(state) = read::text(&root.join(&name).join("state"), 4096)? {
            pools.push(ZfsPool { name, state: state.trim().to_owned(), usage: None });
        }
    }
    Ok(Some(pools))
}

/// Asks `zpool list` how full they are. A suspended pool holds up whoever asks for it, so it is not asked for.
pub(super) async fn fill(pools: &mut [ZfsPool], patience: Duration) -> Result<(), Error> {
    let answering: Vec<&str> = pools.iter().filter(|p| p.state != "SUSPENDED").map(|p| p.name.as_str()).collect();
    if answering.is_empty() {
        return Ok(());
    }
    let args: Vec<&str> = ["list", "-Hpv", "--"].into_iter().chain(answering).collect();
    let text = command::run("zpool", &args, patience).await?.success("zpool list")?;
    let mut told = parse(&text).ok_or_else(|| read::look(Trouble::Garbled, "zpool list told what cannot be read"))?;
    for pool in pools {
        pool.usage = told.iter().position(|(name, _)| *name == pool.name).map(|at| told.swap_remove(at).1);
    }
    Ok(())
}

/// Reads `zpool list -Hpv`: a line of eleven columns for each pool, then its vdevs, indented; those of a class of their own under a heading.
fn parse(text: &str) -> Option<Vec<(String, ZfsUsage)>> {
    let mut pools: Vec<(String, ZfsUsage)> = Vec::new();
    let mut class = "";
    for line in text.lines() {
        let indented = line.starts_with(['\t', ' ']);
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, size, allocated, ..] = fields.as_slice() else { continue };
        let number = |text: &str| text.parse::<u64>().ok();
        if indented {
            if matches!(class, "special" | "dedup")
                && let (Some(size), Some(allocated), Some((_, pool))) = (number(size), number(allocated), pools.last_mut())
            {
                pool.special.push((format!("{class} {name}"), size, allocated));
            }
        } else if *size == "-" {
            class = name;
        } else {
            class = "";
            let health = fields.get(9)?;
            let usage = ZfsUsage { size: number(size)?, allocated: number(allocated)?, health: (*health).to_owned(), special: Vec::new() };
            pools.push(((*name).to_owned(), usage));
        }
    }
    Some(pools)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const LIST: &str = "rpool\t1000\t470\t530\t-\t-\t12\t47\t1.00\tONLINE\t-\n\
        \tmirror-0\t1000\t470\t530\t-\t-\t12\t47\t-\tONLINE\n\
        \t/dev/sda3\t-\t-\t-\t-\t-\t-\t-\t-\tONLINE\n\
        special\t-\t-\t-\t-\t-\t-\t-\t-\t-\n\
        \tmirror-1\t100\t90\t10\t-\t-\t0\t90\t-\tONLINE\n\
        logs               -      -      -        -         -      -      -      -         -\n\
        \tnvme0\t50\t49\t1\t-\t-\t0\t98\t-\tONLINE\n\
        tank\t5000\t100\t4900\t-\t-\t0\t2\t1.00\tDEGRADED\t-\n";

    #[test]
    fn pools_and_their_special_vdevs_are_read() {
        let pools = parse(LIST).unwrap();
        assert_eq!(pools.len(), 2);
        let (name, rpool) = &pools[0];
        assert_eq!((name.as_str(), rpool.size, rpool.allocated, rpool.health.as_str()), ("rpool", 1000, 470, "ONLINE"));
        assert_eq!(rpool.special, [("special mirror-1".to_owned(), 100, 90)]);
        assert_eq!((pools[1].0.as_str(), pools[1].1.health.as_str()), ("tank", "DEGRADED"));
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("rpool\tx\ty\n"), None);
    }

    #[test]
    fn states_come_from_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(states(dir.path()).unwrap(), None);
        let root = dir.path().join("spl/kstat/zfs");
        fs::create_dir_all(root.join("rpool")).unwrap();
        fs::write(root.join("arcstats"), "x").unwrap();
        fs::write(root.join("rpool/state"), "SUSPENDED\n").unwrap();
        let pools = states(dir.path()).unwrap().unwrap();
        assert_eq!(pools, [ZfsPool { name: "rpool".into(), state: "SUSPENDED".into(), usage: None }]);
    }

    #[tokio::test]
    async fn a_suspended_pool_is_not_asked_for() {
        let mut pools = [ZfsPool { name: "rpool".into(), state: "SUSPENDED".into(), usage: None }];
        // There is no such tool here, and it is not missed.
        fill(&mut pools, Duration::ZERO).await.unwrap();
        assert_eq!(pools[0].usage, None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(rpool|special|\t|-|1000|ONLINE|\n| |\\PC){0,60}") {
            let _ = parse(&text);
        }
    }
}
