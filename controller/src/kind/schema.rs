//! What fields may hold, as an API server is told: one type for each kind of text, with the rule of `pvelet_proto::id` or stricter in CEL,
//! and a message that says what would be right. They exist to be named in `#[schemars(with = "...")]`.
//!
//! Every text has a longest length: without, an API server refuses the rule as too costly.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// One rule: what must be true of `self`, and what to do where it is not.
pub(super) fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}

/// A rule of an object that is about one of its fields.
pub(super) fn field_rule(field: &str, rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message, "fieldPath": format!(".{field}")})
}

macro_rules! schemas {
    ($($(#[$doc:meta])* $name:ident => $schema:tt;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

schemas! {
    /// A public key as OpenSSH writes it. Its rule is the list's: an API server repeats a text that it refuses, and somebody may have put a
    /// private key here.
    SshKey => {"type": "string", "maxLength": 16384};
    /// The addresses of one host.
    HostAddresses => {"type": "array", "maxItems": 16, "items": {"type": "string", "format": "cidr", "maxLength": 49}};
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident($words:expr))*) => {
        schemas! {$($(#[$doc])* $name => {"type": "string", "enum": $words};)*}
    };
}

words! {
    /// A group of checks.
    CheckGroup(super::kubernetes_node::GROUPS)
    /// How a host caches a disk.
    Cache(pvelet_proto::volume::CACHES)
    /// How a host reads and writes a disk.
    Aio(pvelet_proto::volume::AIOS)
    /// The model of a NIC.
    NicModel(super::machine_check::MODELS)
}

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident($longest:literal) { $($rule:expr => $message:expr),* $(,)? })*) => {
        schemas! {$(
            $(#[$doc])*
            $name => {"type": "string", "maxLength": $longest, "x-kubernetes-validations": [$(rule($rule, $message)),*]};
        )*}
    };
}

texts! {
    /// `id::dns_name`.
    DnsName(253) {
        "self.matches('^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?([.][A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$')"
            => "use labels of 1 to 63 letters, digits and '-' joined by '.', none beginning or ending with '-'",
    }
    /// `id::tenant`: a DNS label in lower case.
    Label(63) {
        "self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')"
            => "use 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
    }
    /// The name of an object of Kubernetes.
    ObjectName(253) {
        "self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$')"
            => "use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit",
    }
    /// A key of a Secret or a ConfigMap.
    DataKey(253) {
        "self.matches('^[A-Za-z0-9_.-]+$') && !self.startsWith('..') && self != '.'"
            => "use letters, digits, '-', '_' and '.', not beginning with '..'",
    }
    /// `id::node`.
    NodeName(63) {
        "self.matches('^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$')"
            => "use 1 to 63 letters, digits and '-', beginning and ending with a letter or digit",
    }
    /// `id::storage`.
    StorageId(100) {
        "self.matches('^[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]$')"
            => "use a storage id of PVE: begin with a letter, go on with letters, digits, '-', '_', '.', end with a letter or digit",
    }
    /// `id::pool`.
    Pool(128) {
        "self.matches('^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){0,2}$')"
            => "use letters, digits, '.', '_', '-', at most three levels joined by '/'",
    }
    /// `id::tag`.
    Tag(64) {
        "self.matches('^[a-z0-9_][a-z0-9_+.-]*$')"
            => "use 1 to 64 of lower-case letters, digits, '_', '+', '.', '-', beginning with a letter, digit or '_'",
    }
    /// `id::snapshot`.
    SnapshotName(40) {
        "self.matches('^[A-Za-z][A-Za-z0-9_-]+$') && !(self in ['current', 'pending'])"
            => "use 2 to 40 letters, digits, '_' and '-', beginning with a letter, but not 'current' or 'pending'",
    }
    /// `id::interface`: one that exists already.
    InterfaceName(15) {
        "self.matches('^[A-Za-z0-9._-]+$') && !(self in ['.', '..'])" => "use 1 to 15 letters, digits, '.', '_', '-'",
    }
    /// The name of an interface that is made.
    NewInterfaceName(15) {
        "self.matches('^[A-Za-z][A-Za-z0-9._-]*$')" => "use 1 to 15 letters, digits, '.', '_', '-', beginning with a letter",
        "self != 'lo' && !self.matches('^(tap|fwbr|fwpr|fwln|veth|pvprobe)')"
            => "lo, tap*, fwbr*, fwpr*, fwln*, veth* and pvprobe* are the system's or PVE's own: use another name",
    }
    /// `id::mac`.
    MacAddress(17) {
        "self.matches('^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$')" => "use a unicast address such as BC:24:11:00:00:01",
    }
    /// The id of a volume.
    VolumeUuid(36) {
        "self.matches('^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$') && !self.matches('^[0-]*$')"
            => "use a UUID with hyphens, such as `pveletctl volumes` shows",
    }
    /// The address of an agent: `tls::Address`.
    AgentAddress(300) {
        "self.matches('^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?[.])*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\
         (:[0-9]{1,5})?$') ? (!self.matches('(^|[.])[0-9]+(:[0-9]+)?$') || isIP(self.split(':')[0])) \
         : (self.matches('^[[][0-9A-Fa-f:.]+[]](:[0-9]{1,5})?$') ? isIP(self.split(']')[0].substring(1)) : isIP(self))"
            => "use <name>:<port>, <ip>:<port> or [<ipv6>]:<port>",
        "!self.matches('^([^:]*|.*[]]):[0-9]{1,5}$') || (int(self.substring(self.lastIndexOf(':') + 1)) > 0 \
         && int(self.substring(self.lastIndexOf(':') + 1)) < 65536)"
            => "use a port from 1 to 65535, such as 7443",
    }
    /// An IP address.
    IpAddress(45) {
        "isIP(self)" => "use an IP address, such as 192.0.2.1 or 2001:db8::1",
    }
    /// An IPv4 address that a guest is given.
    GuestIpv4(18) {
        "self == 'dhcp' || (isCIDR(self) && cidr(self).ip().family() == 4)" => "use dhcp or an address such as 10.0.0.5/24",
    }
    /// An IPv6 address that a guest is given.
    GuestIpv6(49) {
        "self == 'dhcp' || self == 'auto' || (isCIDR(self) && cidr(self).ip().family() == 6)"
            => "use dhcp, auto or an address such as 2001:db8::5/64",
    }
    /// An address with prefix length that a host is given. The first and last address of an IPv4 subnet are nobody's, unless it is a /31 or /32.
    HostAddress(49) {
        "isCIDR(self)" => "use an address with prefix length, such as 192.0.2.1/24 or 2001:db8::1/64",
        "!isCIDR(self) || (cidr(self).prefixLength() > 0 && (cidr(self).ip().isGlobalUnicast() || cidr(self).ip().isLinkLocalUnicast()) \
         && (cidr(self).ip().family() == 6 || cidr(self).prefixLength() > 30 || (string(cidr(self).masked().ip()) != self.split('/')[0] \
         && [self.split('/')[0].split('.')].all(o, [int(o[0]) * 16777216 + int(o[1]) * 65536 + int(o[2]) * 256 + int(o[3]) + 1].all(next, \
         next % [2147483648, 1073741824, 536870912, 268435456, 134217728, 67108864, 33554432, 16777216, 8388608, 4194304, 2097152, 1048576, \
         524288, 262144, 131072, 65536, 32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4][cidr(self).prefixLength() - 1] \
         != 0)))))"
            => "no host can have it: use a host's address with its subnet's prefix length",
    }
    /// VLANs of a trunk: one, or a range.
    Vids(9) {
        "self.matches('^[0-9]{1,4}(-[0-9]{1,4})?$') && self.split('-').all(v, int(v) >= 1 && int(v) <= 4094) \
         && int(self.split('-')[0]) <= int(self.split('-')[self.split('-').size() - 1])"
            => "use a VLAN or a range within 1 to 4094, such as \"100\" or \"200-299\"",
    }
    /// A word for people that stands in a file of PVE.
    Comment(64) {
        "!self.matches('[\\\\p{Cc}\"\\'`\\\\\\\\]')" => "use up to 64 printable characters without quotes and backslashes",
    }
    /// The login user that cloud-init makes.
    UserName(32) {
        "self.matches('^[a-z_][a-z0-9_-]*$')" => "use 1 to 32 of [a-z0-9_-], beginning with a letter or '_'",
    }
    /// A file below an agent's import folders.
    ImageFile(4096) {
        "self.matches('^[^/]+(/[^/]+)*$') && !self.matches('(^|/)[.][.]?(/|$)') && !self.matches('\\\\p{Cc}')"
            => "use a path below one of the agent's import folders, without a leading '/' and without '..'",
    }
    /// PVE's id of an image to import.
    ImageVolid(512) {
        "self.matches('^[A-Za-z][A-Za-z0-9_.-]{0,98}[A-Za-z0-9]:import/')"
            => "use PVE's volume id of an image to import, such as local:import/debian-13.qcow2",
    }
    /// `sha256sum`'s.
    Sha256(64) {
        "self.matches('^[0-9A-Fa-f]{64}$')" => "use 64 hexadecimal digits, such as sha256sum prints",
    }
    /// How long something must last on a Node.
    NodeSpan(32) {
        "self.matches('^([0-9]{1,6}h)?([0-9]{1,7}m)?([0-9]{1,9}s)?$') && self != '' && duration(self) <= duration('1h')"
            => "use a span of time with a unit, 0s to 1h, such as 90s or 5m",
    }
    /// How long a host waits for a confirmation.
    ConfirmSpan(32) {
        "self.matches('^([0-9]{1,6}h)?([0-9]{1,7}m)?([0-9]{1,9}s)?$') && self != '' && duration(self) >= duration('10s') \
         && duration(self) <= duration('10m')"
            => "use a span of time with a unit, 10s to 10m, such as 60s",
    }
}

macro_rules! bytes {
    ($($(#[$doc:meta])* $name:ident($condition:literal) => $message:literal;)*) => {
        schemas! {$(
            $(#[$doc])*
            $name => {
                "x-kubernetes-int-or-string": true,
                "maxLength": 32,
                "x-kubernetes-validations": [rule(
                    concat!(
                        "type(self) == int ? [self].all(n, ", $condition,
                        ") : self.matches('^([0-9]+|[0-9]*[.][0-9]{1,9}|[0-9]+[.])(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$') \
                         && [quantity(self).asApproximateFloat()].all(f, f < 9.0e18 && [int(f)].all(n, ", $condition, "))"
                    ),
                    $message
                )]
            };
        )*}
    };
}

bytes! {
    /// [`super::Quantity`].
    Bytes("n >= 0") => "use a quantity of bytes such as 2Gi, 512Mi or 20G";
    /// Memory of a VM.
    Memory("n >= 16777216 && n <= 17592186044416 && n % 1048576 == 0")
        => "use whole MiB from 16Mi to 16Ti, such as 2Gi; a number without a unit means bytes";
    /// Size of a boot disk.
    BootDisk("n > 0 && n % 1048576 == 0") => "use whole MiB, such as 20Gi; a number without a unit means bytes";
    /// Size of a volume.
    VolumeSize("n > 0 && n <= 1125899906842624 && n % 1048576 == 0")
        => "use whole MiB from 1Mi to 1Pi, such as 20Gi; a number without a unit means bytes";
}
