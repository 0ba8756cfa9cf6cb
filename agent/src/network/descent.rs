//! How interfaces are brought down without what they stand on.
//!
//! `ifdown` takes the ports of a bridge down with it, and every link below that its files do not declare; and what goes is not declared in the
//! live files any more. So it is given a text of its own: the own file as it was, bridges without ports, and a bare stanza for each link below.
//! A bridge first lets go of its ports (`ifup` with that text), which then stay up and get their IPv6 back. `ifdown` needs `-u`: without it goes
//! by what it remembers of the `ifup` instead of the text.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    definition::{Interface, Kind},
    own_file::{OwnFile, lower, stanza},
    verify::Index,
};
use crate::host::net::{Action, Kernel, Step};

/// What to run, and on which text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Descent {
    /// In this order.
    pub steps: Vec<Step>,
    /// Instead of the live files.
    pub text: String,
}

/// Brings down these interfaces, in the order given; those that the kernel does not have are left out.
///
/// `text`: the own file in which they are declared: the old one for what a plan removes, the new one for what undoing it removes. Errors: it
/// cannot be read.
pub fn descent(text: Option<&str>, going: &[String], kernel: &Kernel) -> Result<Descent, String> {
    let own_file = OwnFile::parse(text)?;
    let index = Index::new(kernel);
    let mut out = Descent::default();
    for name in going.iter().filter(|n| index.link(n).is_some()) {
        let bridge = own_file.interfaces().any(|(_, i)| &i.name == name && matches!(i.kind, Kind::Bridge { .. }));
        if bridge && !index.ports(name).is_empty() {
            out.steps.push(Step { action: Action::Change, interface: name.clone() });
        }
        out.steps.push(Step { action: Action::Down, interface: name.clone() });
    }
    let mut below: BTreeSet<&str> = BTreeSet::new();
    for (_, interface) in own_file.interfaces() {
        below.extend(lower(interface).iter().map(String::as_str));
        let mut interface = interface.clone();
        if let Interface { name, kind: Kind::Bridge { ports, .. }, .. } = &mut interface
            && going.contains(name)
        {
            ports.clear();
        }
        stanza(&mut out.text, &interface);
    }
    for name in below.iter().filter(|n| !own_file.interfaces().any(|(_, i)| i.name == **n)) {
        let _ = writeln!(out.text, "iface {name} inet manual");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{
        super::{
            declared,
            plan::{Plan, Wish},
            planner,
            testing::{bridge, file, host, run, spec, usual, vlan},
            validate,
        },
        *,
    };

    fn made() -> (Plan, Kernel) {
        let mut kernel = host();
        let wanted =
            spec("n", &[bridge("vmbr1", &["eth2", "v"], None), bridge("vmbr2", &[], None), vlan("v", "bond0", 5), vlan("w", "eth1", 6)]);
        let definition = validate::definition(&wanted, "team-a", &kernel).unwrap();
        let plan = planner::plan(None, &Wish::Apply(definition), &kernel, &usual()).unwrap();
        run(&plan, &mut kernel);
        (plan, kernel)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn bridges_let_go_of_their_ports_first() {
        let (plan, kernel) = made();
        let down = descent(plan.new_text.as_deref(), &names(&["vmbr2", "vmbr1", "v", "not-there"]), &kernel).unwrap();
        let steps: Vec<_> = down.steps.iter().map(|s| (s.action, s.interface.as_str())).collect();
        assert_eq!(steps, [(Action::Down, "vmbr2"), (Action::Change, "vmbr1"), (Action::Down, "vmbr1"), (Action::Down, "v")]);
        let read = declared::parse(&[file("down", &down.text)]);
        assert_eq!(read.of("vmbr1").next().unwrap().option("bridge-ports"), Some("none"));
        assert_eq!(read.of("v").next().unwrap().parent(), Some("bond0"));
    }

    #[test]
    fn what_stays_below_is_declared_so_that_nobody_takes_it_along() {
        let (plan, kernel) = made();
        let down = descent(plan.new_text.as_deref(), &names(&["w"]), &kernel).unwrap();
        let read = declared::parse(&[file("down", &down.text)]);
        for name in ["eth1", "eth2", "bond0"] {
            let stanzas: Vec<_> = read.of(name).collect();
            assert_eq!((stanzas.len(), stanzas[0].options.len(), stanzas[0].auto), (1, 0, false), "{name}");
        }
        // What stays keeps its ports, and is declared once.
        assert_eq!(read.of("vmbr1").next().unwrap().option("bridge-ports"), Some("eth2 v"));
        assert_eq!(read.of("v").count(), 1);
    }
}
