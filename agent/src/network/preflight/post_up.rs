//! Commands of the declarations that cannot be run twice.

use super::{Check, Rule, Scene, Severity, option_name, some};

pub(super) const POST_UP: Rule = Rule {
    id: "net.post-up",
    severity: Severity::Warning,
    why: "`ifreload -a` and each `ifup` run these commands again without those of `down`: rules and routes pile up, or the command fails and \
          ifupdown2 reports the interface as failed",
};

pub(super) fn check(scene: &Scene<'_>) -> Check {
    let (mut bad, mut names, mut count) = (Vec::new(), Vec::new(), 0);
    for stanza in &scene.stanzas {
        for (name, command) in &stanza.options {
            if !matches!(option_name(name).as_str(), "pre-up" | "up" | "post-up") {
                continue;
            }
            count += 1;
            if let Some(part) = unguarded(command) {
                bad.push(format!("{} ({}:{}): `{part}`", stanza.name, stanza.file.display(), stanza.line));
                names.push(stanza.name.clone());
            }
        }
    }
    match (bad.is_empty(), count) {
        (true, 0) => POST_UP.not_applicable("no interface runs commands"),
        (true, n) => POST_UP.ok(format!("{n} commands, none that is known to fail or pile up the second time")),
        (false, _) => POST_UP.failed(
            some(&bad),
            "guard it: `ip route replace`, `iptables -C ... || iptables -A ...`, `... || true` for what may exist",
            names,
        ),
    }
}

/// The first command of a line that adds something without looking whether it is there.
fn unguarded(line: &str) -> Option<String> {
    // A condition of any kind counts as a guard: whoever wrote it thought of the second time.
    if line.contains("||") || line.contains("&&") || line.trim_start().starts_with("if ") || line.contains("; if ") {
        return None;
    }
    let parts: Vec<Vec<&str>> = line.split(';').map(|p| p.split_whitespace().collect()).collect();
    let undone = |program: &str, words: &[&str]| {
        parts.iter().any(|p| p.first().is_some_and(|f| program_name(f) == program) && p.iter().any(|w| words.contains(w)))
    };
    let adds = |p: &&Vec<&str>| {
        let Some((program, arguments)) = p.split_first() else { return false };
        let program = program_name(program);
        match program {
            "iptables" | "ip6tables" | "ebtables" | "arptables" => {
                arguments.iter().any(|a| matches!(*a, "-A" | "-I" | "-N" | "--append" | "--insert" | "--new-chain"))
                    && !undone(program, &["-D", "-F", "--delete", "--flush"])
            }
            "nft" => {
                arguments.windows(2).any(|w| matches!(w, ["add" | "insert", "rule"])) && !undone(program, &["flush", "delete", "destroy"])
            }
            "ip" => arguments.contains(&"add") && !undone(program, &["del", "delete", "flush"]),
            "route" | "tc" => arguments.contains(&"add") && !undone(program, &["del", "delete"]),
            "bridge" => arguments.first() == Some(&"fdb") && arguments.iter().any(|a| matches!(*a, "add" | "append")),
            "brctl" => arguments.first().is_some_and(|a| matches!(*a, "addbr" | "addif")),
            "vconfig" => arguments.first() == Some(&"add"),
            "ovs-vsctl" => arguments.iter().any(|a| matches!(*a, "add-br" | "add-port")) && !arguments.contains(&"--may-exist"),
            "echo" | "printf" => arguments.iter().any(|a| a.starts_with(">>")),
            _ => false,
        }
    };
    parts.iter().find(adds).map(|p| p.join(" "))
}

/// The last part of a path.
fn program_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_add_blindly_are_told_from_those_that_look_first() {
        let bad = [
            "ip route add 10.0.0.0/8 via 192.0.2.1",
            "/sbin/ip -6 route add default via fe80::1 dev vmbr0",
            "ip rule add from 192.0.2.0/24 table 7",
            "ip link add dev x type dummy",
            "iptables -t nat -A POSTROUTING -s 10.0.0.0/24 -o vmbr0 -j MASQUERADE",
            "echo 1 > /proc/sys/net/ipv4/ip_forward; /usr/sbin/ip6tables -I FORWARD -j ACCEPT",
            "nft add rule inet filter forward accept",
            "route add -net 10.0.0.0/8 gw 192.0.2.1",
            "tc qdisc add dev eno1 root fq",
            "bridge fdb append 00:00:00:00:00:00 dev vxlan1 dst 192.0.2.9",
            "brctl addif vmbr0 eno1",
            "ovs-vsctl add-port vmbr0 eno1",
            "echo x >> /run/ups",
        ];
        for line in bad {
            assert!(unguarded(line).is_some(), "{line}");
        }
        let good = [
            "ip route replace 10.0.0.0/8 via 192.0.2.1",
            "ip route add 10.0.0.0/8 via 192.0.2.1 || true",
            "ip route del 10.0.0.0/8; ip route add 10.0.0.0/8 via 192.0.2.1",
            "iptables -C FORWARD -j ACCEPT || iptables -A FORWARD -j ACCEPT",
            "iptables -D FORWARD -j ACCEPT; iptables -A FORWARD -j ACCEPT",
            "[ -e /run/x ] && ip route add 10.0.0.0/8 via 192.0.2.1",
            "if ! ip rule | grep -q 7; then ip rule add table 7; fi",
            "nft add table inet filter",
            "bridge vlan add vid 7 dev eno1",
            "ethtool -K eno1 txvlan off",
            "ovs-vsctl --may-exist add-port vmbr0 eno1",
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
            "/usr/local/bin/add rule",
            "",
            ";;",
        ];
        for line in good {
            assert_eq!(unguarded(line), None, "{line}");
        }
    }
}
