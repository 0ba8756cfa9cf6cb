//! Options of a configuration, one by one: what their schema alone cannot check, and the form in which they are kept.

use std::collections::BTreeSet;

use percent_encoding::percent_decode_str;
use sha1::{Digest, Sha1};

use super::{disk, env::Env, options};
use crate::{
    api::{Failure, format},
    storage::{Storages, Volume},
    vmconf::{self, is_drive_key},
};

/// Checks one option beyond its schema.
pub(super) fn check_option(env: &Env<'_>, storages: &Storages, key: &str, value: &str) -> Result<(), Failure> {
    options::check_more(key, value).map_err(|message| Failure::parameter(key, message))?;
    if is_drive_key(key) {
        return disk::check(env, storages, key, value);
    }
    match key {
        "sshkeys" => check_keys(value),
        "hookscript" => {
            let refused = |why: &str| Failure::parameter(key, format!("script '{value}' {why}\n"));
            let volume = Volume::parse(value)?;
            let path = storages.path(&volume)?;
            let meta = std::fs::metadata(path).map_err(|_| refused("does not exist"))?;
            let executable = std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o111 != 0;
            if executable { Ok(()) } else { Err(refused("is not executable")) }
        }
        _ => Ok(()),
    }
}

fn check_keys(text: &str) -> Result<(), Failure> {
    let plain = percent_decode_str(text).decode_utf8_lossy().into_owned();
    let key = |line: &str| {
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let known = kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-");
        let body = words.next().unwrap_or_default();
        known && body.len() >= 16 && body.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
    };
    let good = plain.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).all(key);
    if good { Ok(()) } else { Err(Failure::die("SSH public key validation error")) }
}

/// A value as it is kept.
pub(super) fn kept(env: &Env<'_>, key: &str, value: &str) -> String {
    match key {
        "tags" => {
            let tags: BTreeSet<String> = format::list(value).map(str::to_ascii_lowercase).collect();
            tags.into_iter().collect::<Vec<_>>().join(";")
        }
        "vmgenid" if value == "1" => uuid::Uuid::new_v4().to_string(),
        "cipassword" if !value.starts_with('$') => format!("$5$simulated${}", hex::encode(Sha1::digest(value))),
        _ if key.strip_prefix("net").is_some_and(|rest| vmconf::number(rest).is_some()) => super::with_mac(env.layout, value),
        _ => value.to_owned(),
    }
}
