//! The options of a VM's configuration, as `qm set` lists them.

use std::{collections::BTreeMap, sync::LazyLock};

use super::super::{Param, format, property::Properties};

const LIMITS: &str = "aio:e(native|threads|io_uring) backup:b bps:i(0..) bps_max_length:i(1..) bps_rd:i(0..) bps_rd_max_length:i(1..) bps_wr:i(0..) \
    bps_wr_max_length:i(1..) cache:e(none|writethrough|writeback|unsafe|directsync) detect_zeroes:b discard:e(ignore|on) \
    format:e(raw|qcow|qed|qcow2|vmdk|cloop) import-from iops:i(0..) iops_max:i(0..) iops_max_length:i(1..) iops_rd:i(0..) iops_rd_max:i(0..) \
    iops_rd_max_length:i(1..) iops_wr:i(0..) iops_wr_max:i(0..) iops_wr_max_length:i(1..) mbps:n(0..) mbps_max:n(0..) mbps_rd:n(0..) \
    mbps_rd_max:n(0..) mbps_wr:n(0..) mbps_wr_max:n(0..) media:e(cdrom|disk) replicate:b rerror:e(ignore|report|stop) serial:u(60) shared:b size:f(size) \
    snapshot:b werror:e(enospc|ignore|report|stop) *!file:f(drive)";

static IDE: LazyLock<Properties> = LazyLock::new(|| drive(" model:u(120) ssd:b wwn:r(wwn)"));
static SATA: LazyLock<Properties> = LazyLock::new(|| drive(" ssd:b wwn:r(wwn)"));
static SCSI: LazyLock<Properties> =
    LazyLock::new(|| drive(" iothread:b product:r(product) queues:i(2..) ro:b scsiblock:b ssd:b vendor:r(vendor) wwn:r(wwn)"));
static VIRTIO: LazyLock<Properties> = LazyLock::new(|| drive(" iothread:b ro:b"));

/// The models of network cards. Each may stand for `model=`, with the MAC address as its value.
pub(super) const MODELS: &[&str] = &[
    "e1000",
    "e1000-82540em",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "i82551",
    "i82557b",
    "i82559er",
    "ne2k_isa",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "virtio",
    "vmxnet3",
];

static NET: LazyLock<Properties> = LazyLock::new(|| {
    let notation = "*!model:e(e1000|e1000-82540em|e1000-82544gc|e1000-82545em|e1000e|i82551|i82557b|i82559er|ne2k_isa|ne2k_pci|pcnet|rtl8139|virtio|vmxnet3) \
        bridge firewall:b host-tunnel:b link_down:b macaddr:f(mac) mtu:i(1..65520) queues:i(0..64) rate:n(0..) tag:i(1..4094) trunks";
    Properties::read(notation).alias(MODELS, "model", "macaddr")
});
static IPCONFIG: LazyLock<Properties> =
    LazyLock::new(|| Properties::read("gw:f(ip4) gw6:f(ip6) ip:f(ip4c) ip6:f(ip6c)").requires(&[("gw", "ip"), ("gw6", "ip6")]));

fn drive(more: &'static str) -> Properties {
    Properties::read(Box::leak(format!("{LIMITS}{more}").into_boxed_str()))
}

/// Options that are property strings of their own.
static STRINGS: LazyLock<BTreeMap<&'static str, Properties>> = LazyLock::new(|| {
    [
        ("agent", "*!enabled:b freeze-fs:b freeze-fs-on-backup:b fstrim_cloned_disks:b type:e(virtio|isa)"),
        ("amd-sev", "*!type:e(std|es|snp) allow-smt:b kernel-hashes:b no-debug:b no-key-sharing:b"),
        ("audio0", "!device:e(ich9-intel-hda|intel-hda|AC97) driver:e(spice|none)"),
        ("boot", "*legacy order"),
        ("cicustom", "meta:f(volume) network:f(volume) user:f(volume) vendor:f(volume)"),
        ("cpu", "*cputype flags guest-phys-bits:i(32..64) hidden:b hv-vendor-id level:i phys-bits reported-model"),
        ("efidisk0", "*!file:f(drive) efitype:e(2m|4m) format:e(raw|qcow|qed|qcow2|vmdk|cloop) import-from ms-cert:e(2011|2023|2023w|2023k) pre-enrolled-keys:b size:f(size)"),
        ("intel-tdx", "*!type:e(tdx) !attestation:b vsock-cid:i vsock-port:i"),
        ("ivshmem", "!size:i(1..) name"),
        ("machine", "*type:r(machine) aw-bits:n(32..) enable-s3:b enable-s4:b viommu:e(intel|virtio)"),
        ("memory", "*!current:i(16..)"),
        ("rng0", "*!source:e(/dev/urandom|/dev/random|/dev/hwrng) max_bytes:i period:i"),
        ("smbios1", "base64:b family manufacturer product serial sku uuid:f(uuid) version"),
        ("spice_enhancements", "foldersharing:b videostreaming:e(off|all|filter)"),
        ("tpmstate0", "*!file:f(drive) format:e(raw|qcow2|vmdk) import-from size:f(size) version:e(v1.2|v2.0)"),
        (
            "vga",
            "*type:e(cirrus|none|qxl|qxl2|qxl3|qxl4|serial0|serial1|serial2|serial3|std|virtio|virtio-gl|vmware) clipboard:e(vnc) memory:i(4..512)",
        ),
        ("watchdog", "*!model:e(i6300esb|ib700) action:e(reset|shutdown|poweroff|pause|debug|none)"),
    ]
    .map(|(name, notation)| (name, Properties::read(notation)))
    .into()
});
static HOSTPCI: LazyLock<Properties> = LazyLock::new(|| {
    Properties::read(
        "*host device-id driver:e(vfio|keep) legacy-igd:b mapping mdev pcie:b rombar:b romfile sub-device-id sub-vendor-id vendor-id x-vga:b",
    )
});
static NUMA: LazyLock<Properties> = LazyLock::new(|| Properties::read("!cpus hostnodes memory:n policy:e(preferred|bind|interleave)"));
static UNUSED: LazyLock<Properties> = LazyLock::new(|| Properties::read("*!file:f(volume)"));
static USB: LazyLock<Properties> = LazyLock::new(|| Properties::read("*host mapping usb3:b"));
static VIRTIOFS: LazyLock<Properties> =
    LazyLock::new(|| Properties::read("*!dirid cache:e(auto|always|metadata|never) direct-io:b expose-acl:b expose-xattr:b"));

/// Plain booleans.
const BOOLEANS: &[&str] = &[
    "acpi",
    "allow-ksm",
    "autostart",
    "ciupgrade",
    "freeze",
    "keephugepages",
    "kvm",
    "localtime",
    "numa",
    "onboot",
    "protection",
    "reboot",
    "tablet",
    "tdf",
    "template",
];

/// Every option of a configuration.
pub(super) static OPTIONS: LazyLock<BTreeMap<String, Param>> =
    LazyLock::new(|| {
        let mut all: Vec<Param> = BOOLEANS.iter().map(|name| Param::boolean(*name)).collect();
        let integer = |name: &str, min: i64| Param::integer(name).min(min);
        all.extend([
            Param::text("affinity"),
            Param::choice("arch", &["aarch64", "x86_64"]),
            Param::text("args"),
            integer("balloon", 0),
            Param::choice("bios", &["ovmf", "seabios"]),
            Param::text("bootdisk").pattern(crate::vmconf::is_drive_key),
            Param::text("cdrom").format(format::drive_volume),
            Param::text("cipassword"),
            Param::choice("citype", &["configdrive2", "nocloud", "opennebula"]),
            Param::text("ciuser"),
            integer("cores", 1),
            Param::number("cpulimit", Some(0.0), Some(128.0)),
            Param::integer("cpuunits").range(1, 262_144),
            Param::text("description").max_length(8192),
            Param::text("hookscript"),
            Param::text("hotplug"),
            Param::choice("hugepages", &["any", "2", "1024"]),
            Param::choice(
                "keyboard",
                &[
                    "da", "de", "de-ch", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it", "ja", "lt", "mk",
                    "nl", "no", "pl", "pt", "pt-br", "sl", "sv", "tr",
                ],
            ),
            Param::choice(
                "lock",
                &["backup", "clone", "create", "migrate", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended"],
            ),
            Param::number("migrate_downtime", Some(0.0), None),
            integer("migrate_speed", 0),
            Param::text("name").format(format::dns_name),
            Param::text("nameserver").format(format::anything),
            Param::choice(
                "ostype",
                &["other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26", "solaris"],
            ),
            Param::choice("scsihw", &["lsi", "lsi53c810", "virtio-scsi-pci", "virtio-scsi-single", "megasas", "pvscsi"]),
            Param::text("searchdomain"),
            Param::integer("shares").range(0, 50_000),
            integer("smp", 1),
            integer("sockets", 1),
            Param::text("sshkeys").format(format::urlencoded),
            Param::text("startdate"),
            Param::text("startup").format(format::startup),
            Param::text("tags").format(format::tags),
            integer("vcpus", 1),
            Param::text("vmgenid").pattern(|text| matches!(text, "0" | "1") || format::uuid(text).is_ok()),
            Param::text("vmstatestorage").format(format::storage_id),
        ]);
        all.extend(STRINGS.iter().map(|(name, properties)| Param::properties(*name, properties)));
        let mut numbered = |name: &str, count: u32, properties: &'static Properties| {
            all.extend((0..count).map(|n| Param::properties(format!("{name}{n}"), properties)));
        };
        numbered("ide", 4, &IDE);
        numbered("sata", 6, &SATA);
        numbered("scsi", 31, &SCSI);
        numbered("virtio", 16, &VIRTIO);
        numbered("net", 32, &NET);
        numbered("ipconfig", 32, &IPCONFIG);
        numbered("hostpci", 16, &HOSTPCI);
        numbered("numa", 8, &NUMA);
        numbered("unused", 256, &UNUSED);
        numbered("usb", 14, &USB);
        numbered("virtiofs", 10, &VIRTIOFS);
        all.extend((0..3).map(|n| {
            Param::text(format!("parallel{n}")).pattern(|text| text.starts_with("/dev/parport") || text.starts_with("/dev/usb/lp"))
        }));
        all.extend((0..4).map(|n| {
            Param::text(format!("serial{n}")).pattern(|text| text == "socket" || (text.starts_with("/dev/") && !text.contains(',')))
        }));
        all.into_iter().map(|param| (param.name().to_owned(), param.optional())).collect()
    });

/// Checks what its schema alone cannot.
pub(super) fn check_more(name: &str, text: &str) -> Result<(), String> {
    if name != "cpu" {
        return Ok(());
    }
    let cpu = STRINGS.get("cpu").map(|properties| properties.check(name, text));
    let Some(Ok(cpu)) = cpu else { return Ok(()) };
    cpu.get("cputype").map_or(Ok(()), |kind| format::cpu_type(kind)).map_err(|error| format!("invalid format - {error}\n"))
}

/// A drive's properties, checked: words are booleans.
pub(super) fn drive_properties(name: &str, text: &str) -> Result<BTreeMap<String, String>, String> {
    let bus = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let properties = match bus {
        "ide" => &*IDE,
        "sata" => &*SATA,
        "scsi" => &*SCSI,
        "virtio" => &*VIRTIO,
        _ => STRINGS.get(name).ok_or_else(|| format!("'{name}' is no drive"))?,
    };
    properties.check(name, text)
}

/// A network device's properties.
pub(super) fn net(name: &str, text: &str) -> Option<BTreeMap<String, String>> {
    NET.check(name, text).ok()
}

/// An option's value as JSON: numbers and booleans of the schema are numbers.
pub(super) fn json(name: &str, text: &str) -> serde_json::Value {
    let numeric = OPTIONS.get(name).is_some_and(|param| param.is_boolean() || param.is_integer()) || matches!(name, "snaptime");
    match text.parse::<i64>() {
        Ok(number) if numeric => number.into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_are_checked_as_recorded() {
        let cases = [
            ("agent", "1,freeze-fs-on-backup=0", None),
            ("agent", "enabled=2", Some("invalid format - format error\nagent.enabled: type check ('boolean') failed - got '2'\n")),
            ("memory", "8", Some("invalid format - format error\nmemory.current: value must have a minimum value of 16\n")),
            ("machine", "i440fxx", Some("invalid format - format error\nmachine.type: value does not match the regex pattern\n")),
            (
                "ipconfig0",
                "gw=10.99.0.1",
                Some("invalid format - format error\nipconfig0.ip: missing property required by 'ipconfig0.gw'\n"),
            ),
            (
                "scsi8",
                "unused2",
                Some("invalid format - format error\nscsi8.file: invalid format - unable to parse volume ID 'unused2'\n\n"),
            ),
            ("scsi0", "local:1,mbps_rd=10,iops_wr=100", None),
            ("scsi0", "file=none", None),
            ("ide2", "none,media=cdrom", None),
            (
                "scsi3",
                "local:9/vm-9-pvc-0b951f20-53f9-4634-b1ce-112233445566.raw,aio=native,backup=0,cache=none,detect_zeroes=0,discard=on,iops=1,iops_max=2,\
                 iops_max_length=1,iothread=1,mbps=0.5,mbps_max=1,product=pvc,queues=4,replicate=0,rerror=report,ro=1,scsiblock=0,\
                 serial=0b951f2053f94634b1ce,shared=1,snapshot=0,ssd=1,vendor=pvelet,werror=stop,wwn=0x0123456789abcdef",
                None,
            ),
            (
                "scsi3",
                "local:9/vm-9-a.raw,serial=0123456789012345678901234567890123456789012345678901234567890",
                Some("invalid format - format error\nscsi3.serial: value may only be 60 characters long\n"),
            ),
            (
                "scsi3",
                "local:9/vm-9-a.raw,serial=a b",
                Some("invalid format - format error\nscsi3.serial: invalid format - invalid urlencoded string: a b\n\n"),
            ),
            (
                "scsi3",
                "local:9/vm-9-a.raw,queues=1",
                Some("invalid format - format error\nscsi3.queues: value must have a minimum value of 2\n"),
            ),
            (
                "scsi3",
                "local:9/vm-9-a.raw,vendor=123456789",
                Some("invalid format - format error\nscsi3.vendor: value does not match the regex pattern\n"),
            ),
            (
                "scsi3",
                "local:9/vm-9-a.raw,wwn=0x1",
                Some("invalid format - format error\nscsi3.wwn: value does not match the regex pattern\n"),
            ),
            ("serial0", "/etc/passwd", Some("value does not match the regex pattern")),
            ("smbios1", "uuid=11111111-2222-3333-4444-555555555555,serial=abc", None),
            ("net0", "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,mtu=1,queues=4,tag=100,trunks=10;20;30,link_down=1", None),
            ("net1", "model=virtio,macaddr=BC:24:11:00:00:02,bridge=vmbr0", None),
            ("vga", "serial0", None),
            ("boot", "cdn", None),
            ("rng0", "source=/dev/urandom,max_bytes=1024", None),
        ];
        for (name, text, message) in cases {
            assert_eq!(OPTIONS[name].check(text).err().as_deref(), message, "{name}={text}");
        }
    }

    #[test]
    fn numbers_are_numbers_and_formats_are_texts() {
        assert_eq!(
            (json("cores", "2"), json("kvm", "0"), json("memory", "512"), json("agent", "1")),
            (2.into(), 0.into(), "512".into(), "1".into())
        );
    }
}
