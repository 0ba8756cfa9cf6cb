//! Preflight: what is wrong with a host's network before anything is changed, and what of that forbids a change.
//!
//! Every check always yields one [`Check`], so that a list of them shows also what was well. All of it is pure: facts in, findings out. The
//! table of checks stands at the end of `docs/network.md`.

mod declarations;
mod guests;
mod links;
mod mtu;
mod post_up;
mod preview;
mod reach;
mod sdn;
mod staged;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    declared::{self, Declared, Stanza},
    management,
    plan::Plan,
    stack::Stack,
    users::BridgeUser,
};
use crate::{
    error::Error,
    host::net::{Files, Kernel},
};

pub(super) use declarations::stanzas;
pub use staged::{Pending, pending};

/// What is known of a host.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What runs.
    pub kernel: &'a Kernel,
    /// VLAN offloads that are on, by link; links that cannot tell are left out.
    pub offloads: &'a BTreeMap<String, Vec<String>>,
    /// The texts that declare it.
    pub files: &'a Files,
    /// What `files.declared` says.
    pub declared: &'a Declared,
    /// This node's name.
    pub node: &'a str,
    /// Addresses of this host at which the agent is reached.
    pub listeners: &'a [IpAddr],
    /// NICs of this node's VMs.
    pub users: &'a [BridgeUser],
    /// Whether `files.sdn` could be read; the cluster file system may hang.
    pub sdn_known: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Well.
    Ok,
    /// Not well; how bad says the severity.
    Failed,
    /// It could not be found out.
    Unknown,
    /// It does not concern this host, or there is no change to look at.
    NotApplicable,
}

/// How bad it is where a check failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// It will hurt.
    Warning,
    /// Changes are refused.
    Error,
}

/// A preflight check and how it came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Stable, such as `net.source-line`.
    pub id: &'static str,
    /// How it came out.
    pub state: State,
    /// How bad it is where it failed.
    pub severity: Severity,
    /// What was seen.
    pub seen: String,
    /// Why it matters.
    pub why: &'static str,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
    /// The interfaces it is about.
    pub interfaces: Vec<String>,
}

impl Check {
    /// Whether it forbids changes.
    pub fn refuses(&self) -> bool {
        self.state == State::Failed && self.severity == Severity::Error
    }
}

/// All checks, by id: of the host as it is, or of the host with a change.
pub fn checks(facts: &Facts<'_>, plan: Option<&Plan>) -> Vec<Check> {
    let later = preview::after(facts.kernel, plan);
    Scene::new(facts, plan, &later).run()
}

/// Whether a change may be made. An empty one may always. Errors, the most telling first: `ForeignChangePending`, `ManagementPath`,
/// `NetworkInUse`, `NetworkPreflight` with every other check that failed with severity [`Severity::Error`].
pub fn refuse(facts: &Facts<'_>, plan: &Plan) -> Result<(), Error> {
    if plan.is_empty() {
        return Ok(());
    }
    let later = preview::after(facts.kernel, Some(plan));
    let scene = Scene::new(facts, Some(plan), &later);
    if let Some(change) = staged::foreign(&scene) {
        return Err(Error::ForeignChangePending { change });
    }
    if let Some((interface, paths)) = reach::cut(&scene).into_iter().next() {
        return Err(Error::ManagementPath { interface, path: paths.join(", ") });
    }
    if let Some((what, users)) = guests::in_use(&scene).into_iter().next() {
        return Err(Error::NetworkInUse { what, users });
    }
    let failed: Vec<_> = scene.run().into_iter().filter(Check::refuses).map(|c| (c.id.to_owned(), c.seen)).collect();
    if failed.is_empty() { Ok(()) } else { Err(Error::NetworkPreflight { checks: failed }) }
}

/// What the checks look at.
struct Scene<'a> {
    facts: &'a Facts<'a>,
    plan: Option<&'a Plan>,
    /// The kernel as it is.
    now: Stack<'a>,
    /// As it will be after the change; without one the same.
    later: Stack<'a>,
    /// Stanzas of all files, the agent's own included.
    stanzas: Vec<Stanza>,
    /// What links carry that nobody may cut.
    management: BTreeMap<String, Vec<String>>,
    /// Links that the change touches.
    touched: BTreeSet<String>,
}

impl<'a> Scene<'a> {
    fn new(facts: &'a Facts<'a>, plan: Option<&'a Plan>, later: &'a Kernel) -> Self {
        let corosync = facts.files.corosync.as_ref().map(|f| f.text.as_str());
        Self {
            facts,
            plan,
            now: Stack::new(facts.kernel),
            later: Stack::new(later),
            stanzas: stanzas(facts),
            management: management::management(facts.kernel, corosync, facts.node, facts.listeners),
            touched: plan.map(management::touched).unwrap_or_default(),
        }
    }

    fn run(&self) -> Vec<Check> {
        let mut all = vec![
            declarations::duplicates(self),
            declarations::ifupdown2(self),
            declarations::own_file(self),
            declarations::source_line(self),
            declarations::stale(self),
            declarations::syntax(self),
            declarations::undeclared(self),
            guests::bridge_ipv6(self),
            guests::missing_bridges(self),
            guests::network_in_use(self),
            guests::own_vlans(self),
            links::carrier(self),
            links::tx_vlan_offload(self),
            mtu::chain(self),
            mtu::room_for_tags(self),
            post_up::check(self),
            reach::corosync(self),
            reach::management_path(self),
            sdn::lock(self),
            sdn::pending(self),
            staged::interfaces(self),
        ];
        all.sort_by_key(|c| c.id);
        all
    }
}

/// What is fixed of a check.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Its id.
    pub id: &'static str,
    /// How bad it is where it failed.
    pub severity: Severity,
    /// Why it matters.
    pub why: &'static str,
}

/// All checks, by id.
pub const RULES: [&Rule; 21] = [
    &guests::IPV6,
    &reach::COROSYNC,
    &declarations::DUPLICATES,
    &guests::OWN_VLANS,
    &declarations::IFUPDOWN2,
    &reach::MANAGEMENT,
    &mtu::CHAIN,
    &guests::IN_USE,
    &declarations::OWN,
    &post_up::POST_UP,
    &sdn::LOCK,
    &sdn::PENDING,
    &declarations::SOURCE_LINE,
    &staged::STAGED,
    &declarations::STALE,
    &declarations::SYNTAX,
    &links::CARRIER,
    &links::OFFLOAD,
    &declarations::UNDECLARED,
    &guests::MISSING,
    &mtu::TAGS,
];

impl Rule {
    fn outcome(&self, state: State, seen: impl Into<String>) -> Check {
        Check {
            id: self.id,
            state,
            severity: self.severity,
            seen: seen.into(),
            why: self.why,
            remedy: String::new(),
            interfaces: Vec::new(),
        }
    }

    fn ok(&self, seen: impl Into<String>) -> Check {
        self.outcome(State::Ok, seen)
    }

    fn not_applicable(&self, seen: impl Into<String>) -> Check {
        self.outcome(State::NotApplicable, seen)
    }

    fn unknown(&self, seen: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { remedy: remedy.into(), ..self.outcome(State::Unknown, seen) }
    }

    fn failed(&self, seen: impl Into<String>, remedy: impl Into<String>, interfaces: impl IntoIterator<Item = String>) -> Check {
        let interfaces: BTreeSet<String> = interfaces.into_iter().collect();
        Check { remedy: remedy.into(), interfaces: interfaces.into_iter().collect(), ..self.outcome(State::Failed, seen) }
    }
}

/// The first of many in words, and how many more there are: a host with 500 interfaces must not fill the screen.
fn some(all: &[String]) -> String {
    const SHOWN: usize = 8;
    match all.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{}; and {more} more", all[..SHOWN].join("; ")),
        _ => all.join("; "),
    }
}

/// An option's name as ifupdown2 reads it: `bridge_ports` is `bridge-ports`.
fn option_name(name: &str) -> String {
    name.replace('_', "-")
}

/// The values of an option of a stanza, split into words.
fn words<'s>(stanza: &'s Stanza, option: &'s str) -> impl Iterator<Item = &'s str> {
    let values = stanza.options.iter().filter(move |(name, _)| option_name(name) == option);
    values.flat_map(|(_, value)| value.split_whitespace())
}

#[cfg(test)]
pub(super) mod fixtures;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod cluster_tests;
