//! Values of options; each error names what was given and what would be right (clap adds the option's name).

mod network;
mod volume;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use jiff::SignedDuration;
use pvelet_proto::id;

pub(super) use network::{Addresses, VlanArg, addresses, confirm_timeout, interface, network, vlan};
pub(super) use volume::{ImageArg, SnapshotArg, VolumeArg, claim, cluster, image, sha256, snapshot, volume, volume_id, volume_snapshot};

use crate::tls::Address;

type Parsed<T> = Result<T, String>;

fn checked<T, E: ToString>(value: &str, check: impl FnOnce(&str) -> Result<T, E>) -> Parsed<String> {
    check(value).map_err(|e| e.to_string())?;
    Ok(value.to_owned())
}

pub(super) fn tenant(value: &str) -> Parsed<String> {
    checked(value, id::tenant)
}

pub(super) fn tag(value: &str) -> Parsed<String> {
    checked(value, id::tag)
}

pub(super) fn dns_name(value: &str) -> Parsed<String> {
    checked(value, id::dns_name)
}

/// The id of a check, or a group of them. Which there are, the agent knows.
pub(super) fn check(value: &str) -> Parsed<String> {
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
    if (1..=128).contains(&value.len()) && value.chars().all(sound) {
        return Ok(value.to_owned());
    }
    Err(format!("'{value}' is not a check: use an id such as containerd.runtime-type (pveletctl health lists them)"))
}

pub(super) fn node(value: &str) -> Parsed<String> {
    checked(value, id::node)
}

pub(super) fn storage(value: &str) -> Parsed<String> {
    checked(value, id::storage)
}

pub(super) fn pool(value: &str) -> Parsed<String> {
    checked(value, id::pool)
}

pub(super) fn request_id(value: &str) -> Parsed<String> {
    checked(value, id::request_id)
}

pub(super) fn uuid(value: &str) -> Parsed<String> {
    id::uuid(value).map_err(|e| e.to_string())
}

pub(super) fn vmid(value: &str) -> Parsed<u32> {
    let number = value.parse().map_err(|_| format!("'{value}' is not a VMID: use 100 to 999999999"))?;
    id::vmid(number).map_err(|e| e.to_string())
}

/// `operations/<uuid>` or the UUID; returned in the long form.
pub(super) fn operation(value: &str) -> Parsed<String> {
    let long = if value.starts_with("operations/") { value.to_owned() } else { format!("operations/{value}") };
    Ok(id::OperationName::parse(&long).map_err(|e| e.to_string())?.to_string())
}

/// `90`, `90s`, `5m`, `1h30m`.
pub(super) fn duration(value: &str) -> Parsed<Duration> {
    let wrong = || format!("'{value}' is not a duration: use a number of seconds, or such as 500ms, 90s, 5m, 1h30m");
    let parsed = match value.parse::<u32>() {
        Ok(seconds) => Duration::from_secs(seconds.into()),
        Err(_) => value.parse::<SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok()).ok_or_else(wrong)?,
    };
    if parsed.is_zero() { Err(wrong()) } else { Ok(parsed) }
}

/// How long a guest may take to shut down.
pub(super) fn grace(value: &str) -> Parsed<Duration> {
    let grace = duration(value)?;
    if (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&grace) {
        Ok(grace)
    } else {
        Err(format!("'{value}' is out of range: use 1s to 1h"))
    }
}

fn size(value: &str, plain: u64) -> Option<u64> {
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit = match &value[digits..] {
        "" => plain,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    value[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

pub(super) fn memory_mib(value: &str) -> Parsed<u64> {
    size(value, 1 << 20)
        .map(|b| b >> 20)
        .filter(|m| (16..=16_777_216).contains(m))
        .ok_or_else(|| format!("'{value}' is not a size of memory: use MiB or a unit, such as 4096 or 4G, from 16M to 16T"))
}

pub(super) fn disk_bytes(value: &str) -> Parsed<u64> {
    if value.bytes().all(|c| c.is_ascii_digit()) {
        return Err(format!("'{value}' has no unit: use such as 32G"));
    }
    size(value, 0).filter(|b| *b > 0).ok_or_else(|| format!("'{value}' is not a size of a disk: use such as 512M, 32G, 1T"))
}

/// An agent given on the command line.
#[derive(Debug, Clone)]
pub(super) struct AgentArg {
    pub(super) node: Option<String>,
    pub(super) address: Address,
}

pub(super) fn agent(value: &str) -> Parsed<AgentArg> {
    let (name, address) = match value.split_once('=') {
        Some((name, address)) => (Some(node(name)?), address),
        None => (None, value),
    };
    Ok(AgentArg { node: name, address: address.parse().map_err(|e: crate::tls::TlsError| e.to_string())? })
}

/// `key=value` pairs joined by commas, each key known and there once.
struct Pairs<'a> {
    what: &'static str,
    pairs: BTreeMap<&'a str, &'a str>,
}

impl<'a> Pairs<'a> {
    fn read(what: &'static str, value: &'a str, known: &[&str]) -> Parsed<Self> {
        let mut pairs = BTreeMap::new();
        for part in value.split(',') {
            let (key, v) = part.split_once('=').ok_or_else(|| format!("'{part}' has no value: write <key>=<value>, joined by ','"))?;
            if !known.contains(&key) {
                return Err(format!("'{key}' is not known here: use {}", known.join(", ")));
            }
            if pairs.insert(key, v).is_some() {
                return Err(format!("'{key}' is there twice: give it once"));
            }
        }
        Ok(Self { what, pairs })
    }

    fn get<T>(&self, key: &str, parse: impl FnOnce(&str) -> Option<T>, rule: &str) -> Parsed<Option<T>> {
        match self.pairs.get(key) {
            None => Ok(None),
            Some(v) => parse(v).map(Some).ok_or_else(|| format!("{key} '{v}' of the {}: {rule}", self.what)),
        }
    }

    fn number(&self, key: &str, range: std::ops::RangeInclusive<u32>) -> Parsed<Option<u32>> {
        let rule = format!("use {} to {}", range.start(), range.end());
        self.get(key, |v| v.parse().ok().filter(|n| range.contains(n)), &rule)
    }
}

/// A NIC given on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NicArg {
    pub(super) index: Option<u32>,
    pub(super) bridge: String,
    pub(super) vlan: u32,
    pub(super) mac: String,
    pub(super) model: String,
    pub(super) mtu: u32,
    pub(super) firewall: bool,
}

pub(super) fn nic(value: &str) -> Parsed<NicArg> {
    let pairs = Pairs::read("NIC", value, &["bridge", "vlan", "mac", "model", "mtu", "firewall", "index"])?;
    let bridge = pairs.pairs.get("bridge").copied().ok_or("the NIC has no bridge: write bridge=<name>, such as bridge=vmbr0")?;
    id::interface(bridge).map_err(|e| e.to_string())?;
    let mac = match pairs.pairs.get("mac") {
        Some(m) => id::mac(m).map_err(|e| e.to_string())?,
        None => String::new(),
    };
    let switch = |v: &str| match v {
        "on" | "1" | "true" => Some(true),
        "off" | "0" | "false" => Some(false),
        _ => None,
    };
    let model =
        |v: &str| v.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c)).then(|| v.to_owned()).filter(|m| !m.is_empty());
    Ok(NicArg {
        index: pairs.number("index", 0..=31)?,
        bridge: bridge.to_owned(),
        vlan: pairs.number("vlan", 1..=4094)?.unwrap_or(0),
        mac,
        model: pairs.get("model", model, "use such as virtio or e1000")?.unwrap_or_default(),
        mtu: pairs
            .get("mtu", |v| v.parse().ok().filter(|n| *n == 1 || (576..=65520).contains(n)), "use 576 to 65520, or 1 for the bridge's")?
            .unwrap_or(0),
        firewall: pairs.get("firewall", switch, "use on or off")?.unwrap_or(false),
    })
}

/// A guest's address given on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct IpArg {
    pub(super) nic: u32,
    pub(super) ipv4: String,
    pub(super) gateway4: String,
    pub(super) ipv6: String,
    pub(super) gateway6: String,
}

pub(super) fn ip(value: &str) -> Parsed<IpArg> {
    let pairs = Pairs::read("address", value, &["nic", "ip", "gw", "ip6", "gw6"])?;
    let keep = |v: &str| Some(v.to_owned());
    let is4 = |a: &str| a.parse::<Ipv4Addr>().is_ok();
    let is6 = |a: &str| a.parse::<Ipv6Addr>().is_ok();
    let bits = |l: &str, max: u8| l.parse().is_ok_and(|l: u8| l <= max);
    let prefixed4 = |v: &str| v.split_once('/').is_some_and(|(a, l)| is4(a) && bits(l, 32));
    let prefixed6 = |v: &str| v.split_once('/').is_some_and(|(a, l)| is6(a) && bits(l, 128));
    let ipv4 = |v: &str| if v == "dhcp" || prefixed4(v) { keep(v) } else { None };
    let ipv6 = |v: &str| if matches!(v, "dhcp" | "auto") || prefixed6(v) { keep(v) } else { None };
    let arg = IpArg {
        nic: pairs.number("nic", 0..=31)?.unwrap_or(0),
        ipv4: pairs.get("ip", ipv4, "use dhcp or an address with prefix length, such as 10.0.0.5/24")?.unwrap_or_default(),
        gateway4: pairs.get("gw", |v| keep(v).filter(|a| is4(a)), "use an IPv4 address")?.unwrap_or_default(),
        ipv6: pairs.get("ip6", ipv6, "use auto, dhcp or an address with prefix length, such as 2001:db8::5/64")?.unwrap_or_default(),
        gateway6: pairs.get("gw6", |v| keep(v).filter(|a| is6(a)), "use an IPv6 address")?.unwrap_or_default(),
    };
    if arg.ipv4.is_empty() && arg.ipv6.is_empty() {
        return Err("no address: give ip or ip6, such as nic=0,ip=dhcp".to_owned());
    }
    Ok(arg)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nics() {
        assert_eq!(nic("bridge=vmbr0,vlan=70").unwrap(), NicArg { bridge: "vmbr0".into(), vlan: 70, ..NicArg::default() });
        assert_eq!(
            nic("index=3,bridge=vmbr1,mac=bc:24:11:00:00:01,model=e1000,mtu=1,firewall=on").unwrap(),
            NicArg {
                index: Some(3),
                bridge: "vmbr1".into(),
                mac: "BC:24:11:00:00:01".into(),
                model: "e1000".into(),
                mtu: 1,
                firewall: true,
                vlan: 0
            }
        );
        for (bad, words) in [
            ("vmbr0", "'vmbr0' has no value: write <key>=<value>"),
            ("vlan=7", "no bridge: write bridge="),
            ("bridge=vmbr0,vlan=4095", "vlan '4095' of the NIC: use 1 to 4094"),
            ("bridge=vmbr0,vlan=1,vlan=2", "'vlan' is there twice"),
            ("bridge=vmbr0,speed=1", "'speed' is not known here: use bridge, vlan"),
            ("bridge=a/b", "'a/b' is not an interface name"),
            ("bridge=vmbr0,mac=01:00:00:00:00:00", "unicast"),
            ("bridge=vmbr0,mtu=9", "mtu '9' of the NIC: use 576"),
            ("bridge=vmbr0,firewall=yes", "use on or off"),
            ("", "'' has no value"),
        ] {
            let error = nic(bad).unwrap_err();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn addresses_of_guests() {
        assert_eq!(
            ip("nic=1,ip=10.0.0.5/24,gw=10.0.0.1").unwrap(),
            IpArg { nic: 1, ipv4: "10.0.0.5/24".into(), gateway4: "10.0.0.1".into(), ..IpArg::default() }
        );
        assert_eq!(ip("ip6=auto").unwrap().ipv6, "auto");
        for (bad, words) in [
            ("nic=0", "give ip or ip6"),
            ("ip=10.0.0.5", "ip '10.0.0.5' of the address: use dhcp or an address with prefix length"),
            ("ip=10.0.0.5/33", "prefix length"),
            ("ip=2001:db8::1/64", "such as 10.0.0.5/24"),
            ("ip6=dhcp,gw6=10.0.0.1", "gw6 '10.0.0.1' of the address: use an IPv6 address"),
            ("nic=32,ip=dhcp", "nic '32' of the address: use 0 to 31"),
        ] {
            let error = ip(bad).unwrap_err();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn sizes_and_durations() {
        assert_eq!((memory_mib("2048"), memory_mib("4G"), memory_mib("512M")), (Ok(2048), Ok(4096), Ok(512)));
        assert_eq!((disk_bytes("32G"), disk_bytes("1T")), (Ok(32 << 30), Ok(1 << 40)));
        for bad in ["", "G", "4K", "15", "-1", "1.5G", "99999999999999999999"] {
            assert!(memory_mib(bad).unwrap_err().contains("such as 4096 or 4G"), "{bad}");
        }
        assert!(disk_bytes("32").unwrap_err().contains("no unit"));
        assert!(disk_bytes("0G").is_err());
        let ms = Duration::from_millis;
        assert_eq!((duration("90"), duration("500ms"), duration("1h30m")), (Ok(ms(90_000)), Ok(ms(500)), Ok(ms(5_400_000))));
        for bad in ["", "0", "-5s", "soon"] {
            assert!(duration(bad).unwrap_err().contains("use a number of seconds"), "{bad}");
        }
        assert!(grace("2h").unwrap_err().contains("1s to 1h"));
    }

    #[test]
    fn agents_and_operations() {
        let given = agent("pve1=10.0.0.1:5").unwrap();
        assert_eq!((given.node.as_deref(), given.address.to_string().as_str()), (Some("pve1"), "10.0.0.1:5"));
        assert_eq!(agent("10.0.0.1").unwrap().node, None);
        assert!(agent("pve_1=10.0.0.1").unwrap_err().contains("not a node name"));
        let uuid = "3ce39e16-a6d8-4c28-ab96-a142978c9cd2";
        assert_eq!(operation(uuid).unwrap(), format!("operations/{uuid}"));
        assert_eq!(operation(&format!("operations/{uuid}")).unwrap(), format!("operations/{uuid}"));
        assert!(operation("12").unwrap_err().contains("operations/<uuid>"));
        assert!(vmid("99").unwrap_err().contains("100 to 999999999") && vmid("x").unwrap_err().contains("'x'"));
    }
}
