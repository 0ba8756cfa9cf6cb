//! Drives as they are sent: read, checked beyond their schema, and brought into the form in which PVE writes them.

use super::options;
use crate::{
    api::Failure,
    vmconf::{self, Drive},
};

/// Options that mean something only beside another.
const REQUIRES: [(&str, &str); 9] = [
    ("mbps_max", "mbps"),
    ("mbps_rd_max", "mbps_rd"),
    ("mbps_wr_max", "mbps_wr"),
    ("bps_max_length", "mbps_max"),
    ("bps_rd_max_length", "mbps_rd_max"),
    ("bps_wr_max_length", "mbps_wr_max"),
    ("iops_max_length", "iops_max"),
    ("iops_rd_max_length", "iops_rd_max"),
    ("iops_wr_max_length", "iops_wr_max"),
];
/// Limits that exclude each other.
const EITHER: [(&str, &str); 4] = [("mbps_rd", "mbps"), ("mbps_wr", "mbps"), ("iops_rd", "iops"), ("iops_wr", "iops")];

/// Reads a drive: booleans are 0 or 1, a size has its largest unit.
///
/// # Errors
/// `unable to parse drive options` when its options do not go together.
pub(super) fn parse(key: &str, text: &str) -> Result<Drive, Failure> {
    let refused = || Failure::parameter(key, "unable to parse drive options");
    let mut options = options::drive_properties(key, text).map_err(|_| refused())?;
    let mut drive = Drive { file: options.remove("file").unwrap_or_default(), options };
    for bps in ["bps", "bps_rd", "bps_wr"] {
        // PVE takes any value for one byte a second, which rounds to nothing.
        if drive.options.remove(bps).is_some() && drive.options.insert(format!("m{bps}"), String::from("0.000")).is_some() {
            return Err(refused());
        }
    }
    // In Perl's eyes "0" is false, and "0.000" is true.
    let is_set = |key: &str| drive.option(key).is_some_and(|value| !matches!(value, "0" | ""));
    let alone = REQUIRES.iter().any(|(key, other)| is_set(key) && !is_set(other));
    let both = EITHER.iter().any(|(one, other)| is_set(one) && is_set(other));
    let odd_cdrom = drive.is_cdrom() && (is_set("snapshot") || is_set("format") || key.starts_with("virtio"));
    if alone || both || odd_cdrom {
        return Err(refused());
    }
    if let Some(size) = drive.option("size").map(str::to_owned) {
        drive.set("size", vmconf::print_size(vmconf::parse_size(&size).ok_or_else(refused)?));
    }
    if matches!(drive.file.as_str(), "none" | "cdrom") && drive.option("media").is_none() {
        drive.set("media", "cdrom");
    }
    Ok(drive)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_drive_is_written_in_the_order_and_form_of_pve() {
        let cases = [
            (
                "local:9/vm-9-pvc-1.raw,ssd=on,serial=0b951f2053f94634b1ce,ro=yes,iops_wr=5,iothread=1,discard=on,size=1024M,backup=no",
                "local:9/vm-9-pvc-1.raw,backup=0,discard=on,iops_wr=5,iothread=1,ro=1,serial=0b951f2053f94634b1ce,size=1G,ssd=1",
            ),
            ("cache=none,file=local:1,bps_rd=1048576", "local:1,cache=none,mbps_rd=0.000"),
            ("none", "none,media=cdrom"),
        ];
        for (text, written) in cases {
            assert_eq!(parse("scsi3", text).unwrap().print(), written);
        }
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        for options in ["mbps=1,mbps_rd=1", "iops=1,iops_wr=1", "mbps_max=5", "iops_max_length=3", "media=cdrom,format=raw", "bps=1,mbps=1"]
        {
            let error = parse("scsi3", &format!("local:9/vm-9-a.raw,{options}")).unwrap_err();
            assert_eq!(error.to_string(), "Parameter verification failed.\nscsi3: unable to parse drive options", "{options}");
        }
        parse("scsi3", "local:9/vm-9-a.raw,mbps=1,mbps_max=5").unwrap();
    }
}
