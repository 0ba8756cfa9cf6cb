//! How a volume is attached: the options of a drive in PVE's config, from and to those of the API.

use std::collections::BTreeMap;

use pvelet_proto::{
    reason, v1,
    volume::{AIOS, CACHES, IOPS_MAX, MBPS_MAX, VolumeId},
};

use crate::{
    error::Violation,
    host::pve::config_file::{ConfigFile, properties},
};

/// What is wrong with options.
pub(super) fn check(options: &v1::DiskOptions) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut add = |field: &str, text: String| violations.push(Violation::new(format!("options.{field}"), reason::INVALID_FIELD, text));
    if !options.cache.is_empty() && !CACHES.contains(&options.cache.as_str()) {
        add("cache", format!("'{}' is no cache mode; use {}", options.cache, CACHES.join(", ")));
    }
    if !options.aio.is_empty() && !AIOS.contains(&options.aio.as_str()) {
        add("aio", format!("'{}' is no AIO mode; use {}", options.aio, AIOS.join(", ")));
    }
    if options.aio == "native" && !matches!(options.cache.as_str(), "" | "none" | "directsync") {
        add("aio", format!("'native' does not go with cache '{}'; use cache none or directsync, or another aio", options.cache));
    }
    if let Some(limits) = &options.limits {
        violations.extend(check_limits(limits, "options.limits"));
    }
    violations
}

/// What is wrong with limits.
pub(super) fn check_limits(limits: &v1::DiskLimits, field: &str) -> Vec<Violation> {
    let rows = [
        ("iops_read", limits.iops_read, IOPS_MAX),
        ("iops_write", limits.iops_write, IOPS_MAX),
        ("mbps_read", limits.mbps_read, MBPS_MAX),
        ("mbps_write", limits.mbps_write, MBPS_MAX),
    ];
    let above = rows.into_iter().filter(|(_, value, max)| value > max);
    above
        .map(|(name, value, max)| {
            let text = format!("{value} is above {max}; use 1 to {max}, or 0 for no limit");
            Violation::new(format!("{field}.{name}"), reason::INVALID_FIELD, text)
        })
        .collect()
}

/// The line of a drive, in the order in which PVE writes it.
pub(super) fn line(volid: &str, id: VolumeId, options: &v1::DiskOptions) -> String {
    let limits = options.limits.unwrap_or_default();
    let number = |n: u32| (n > 0).then(|| n.to_string());
    let flag = |on: bool| on.then(|| "1".to_owned());
    let text = |t: &str| (!t.is_empty()).then(|| t.to_owned());
    let keys = [
        ("aio", text(&options.aio)),
        ("backup", (!options.backup.unwrap_or(false)).then(|| "0".to_owned())),
        ("cache", text(&options.cache)),
        ("discard", options.discard.then(|| "on".to_owned())),
        ("iops_rd", number(limits.iops_read)),
        ("iops_wr", number(limits.iops_write)),
        ("iothread", flag(options.iothread)),
        ("mbps_rd", number(limits.mbps_read)),
        ("mbps_wr", number(limits.mbps_write)),
        ("replicate", (!options.replicate.unwrap_or(false)).then(|| "0".to_owned())),
        ("ro", flag(options.read_only)),
        ("serial", Some(id.serial())),
        ("ssd", flag(options.ssd)),
    ];
    let mut line = volid.to_owned();
    for (key, value) in keys.into_iter().filter_map(|(k, v)| v.map(|v| (k, v))) {
        line.push_str(&format!(",{key}={value}"));
    }
    line
}

/// The options that a drive's line holds.
pub(super) fn read(value: &str) -> v1::DiskOptions {
    let (_, keys) = properties(value);
    let text = |key: &str| keys.get(key).map(|v| (*v).to_owned()).unwrap_or_default();
    let on = |key: &str| matches!(keys.get(key), Some(&("1" | "on" | "yes" | "true")));
    let not_off = |key: &str| !matches!(keys.get(key), Some(&("0" | "off" | "no" | "false")));
    let number = |key: &str| keys.get(key).and_then(|v| v.split('.').next()?.parse().ok()).unwrap_or(0);
    let limits = v1::DiskLimits {
        iops_read: number("iops_rd"),
        iops_write: number("iops_wr"),
        mbps_read: number("mbps_rd"),
        mbps_write: number("mbps_wr"),
    };
    v1::DiskOptions {
        cache: text("cache"),
        aio: text("aio"),
        iothread: on("iothread"),
        discard: on("discard"),
        ssd: on("ssd"),
        backup: Some(not_off("backup")),
        replicate: Some(not_off("replicate")),
        read_only: on("ro"),
        limits: (limits != v1::DiskLimits::default()).then_some(limits),
    }
}

/// Whether a drive is attached as `options` say, defaults filled in.
pub(super) fn same(value: &str, options: &v1::DiskOptions) -> bool {
    let filled = |o: &v1::DiskOptions| v1::DiskOptions {
        backup: Some(o.backup.unwrap_or(false)),
        replicate: Some(o.replicate.unwrap_or(false)),
        limits: Some(o.limits.unwrap_or_default()),
        ..o.clone()
    };
    filled(&read(value)) == filled(options)
}

/// A drive's line with other limits; whatever else stands in it stays.
pub(super) fn with_limits(value: &str, limits: &v1::DiskLimits) -> String {
    let ours = |part: &&str| {
        let key = part.split('=').next().unwrap_or_default();
        !matches!(key, "iops_rd" | "iops_wr" | "mbps_rd" | "mbps_wr" | "size")
    };
    let mut line = value.split(',').filter(ours).collect::<Vec<_>>().join(",");
    let rows =
        [("iops_rd", limits.iops_read), ("iops_wr", limits.iops_write), ("mbps_rd", limits.mbps_read), ("mbps_wr", limits.mbps_write)];
    for (key, n) in rows.into_iter().filter(|(_, n)| *n > 0) {
        line.push_str(&format!(",{key}={n}"));
    }
    line
}

/// A drive's line with another volume; whatever else stands in it stays, but for the size, which PVE fills in.
pub(super) fn with_volume(value: &str, volid: &str) -> String {
    let rest = value.split(',').skip(1).filter(|part| !part.starts_with("size=") && !part.starts_with("file="));
    std::iter::once(volid).chain(rest).collect::<Vec<_>>().join(",")
}

/// The first slot from `scsi1` to `scsi<last>` that is taken neither now nor after the VM's next start.
pub(super) fn free_slot(config: &ConfigFile, last: u32) -> Option<String> {
    let taken: BTreeMap<&str, &str> = config.keys.iter().chain(&config.pending).map(|(k, v)| (k.as_str(), v.as_str())).collect();
    (1..=last).map(|n| format!("scsi{n}")).find(|slot| !taken.contains_key(slot.as_str()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id() -> VolumeId {
        "0b951f20-53f9-4634-b1ce-5e6c3aa3a726".parse().unwrap()
    }

    fn all() -> v1::DiskOptions {
        v1::DiskOptions {
            cache: "none".into(),
            aio: "native".into(),
            iothread: true,
            discard: true,
            ssd: true,
            backup: Some(true),
            replicate: Some(true),
            read_only: true,
            limits: Some(v1::DiskLimits { iops_read: 1, iops_write: 2, mbps_read: 3, mbps_write: 4 }),
        }
    }

    #[test]
    fn options_read_back_as_they_were_written() {
        for options in [v1::DiskOptions::default(), all()] {
            let line = line("local:9/vm-9-pvc-x.raw", id(), &options);
            assert!(same(&line, &options), "{line}");
            assert!(same(&format!("{line},size=1G"), &options), "{line}");
        }
        assert!(!same(&line("a:b", id(), &all()), &v1::DiskOptions::default()));
    }

    #[test]
    fn a_volume_is_left_out_of_backups_unless_asked_for() {
        assert_eq!(line("a:b", id(), &v1::DiskOptions::default()), "a:b,backup=0,replicate=0,serial=0b951f2053f94634b1ce");
    }

    #[test]
    fn other_limits_leave_the_rest_of_the_line() {
        let limits = v1::DiskLimits { iops_write: 7, ..v1::DiskLimits::default() };
        let line = "local:9/x.raw,iops_rd=5,iops_rd_max=9,iothread=1,serial=abc,size=1G";
        assert_eq!(with_limits(line, &limits), "local:9/x.raw,iops_rd_max=9,iothread=1,serial=abc,iops_wr=7");
        assert_eq!(with_volume(line, "other:y"), "other:y,iops_rd=5,iops_rd_max=9,iothread=1,serial=abc");
    }

    #[test]
    fn a_slot_that_is_pending_is_taken() {
        let config = ConfigFile::parse("scsi0: a:b\nscsi1: a:c\nscsi3: a:d\n\n[PENDING]\nscsi2: a:e\n");
        assert_eq!(free_slot(&config, 29).unwrap(), "scsi4");
        assert_eq!(free_slot(&config, 3), None);
    }

    #[test]
    fn mistakes_are_told_with_field_value_and_remedy() {
        let bad = v1::DiskOptions {
            cache: "writeback".into(),
            aio: "native".into(),
            limits: Some(v1::DiskLimits { mbps_read: 100_001, ..v1::DiskLimits::default() }),
            ..v1::DiskOptions::default()
        };
        let fields: Vec<String> = check(&bad).into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["options.aio", "options.limits.mbps_read"]);
        assert!(check(&v1::DiskOptions { cache: "x".into(), ..v1::DiskOptions::default() })[0].description.contains("'x'"));
        assert!(check(&all()).is_empty());
    }
}
