//! Who may do what. Two questions, each asked in one place: may this role call this method at all ([`roles`], before the request is
//! decoded), and may this identity act so for this tenant on this target ([`Authorizer::authorize`]).

mod gate;
pub mod roles;

use std::collections::HashMap;

use arc_swap::ArcSwap;
use pvelet_proto::identity::{Identity, Role, Subject};

use crate::{config::IdentityRule, error::Error};

pub use gate::{Gate, GateLayer};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Look at it.
    Read,
    /// Make or change it.
    Mutate,
}

/// To what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// The host or the agent itself.
    Host,
    /// What does not exist yet.
    New,
    /// A VM, by its owner's tenant; `None` when nobody's mark is on it.
    Vm {
        /// Its VMID.
        vmid: u32,
        /// Tenant of its mark.
        owner: Option<&'a str>,
    },
    /// An operation.
    Operation {
        /// `operations/<uuid>`
        name: &'a str,
        /// For whom it is done.
        tenant: &'a str,
    },
}

/// Why something was allowed; it stands on the log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision(&'static str);

impl Decision {
    /// The rule that decided.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

#[derive(Debug)]
enum Tenants {
    All,
    These(Vec<String>),
}

#[derive(Debug)]
struct Scope {
    tenants: Tenants,
    /// `None`: all.
    vlans: Option<Vec<(u16, u16)>>,
}

/// On which VLANs an identity may act: first and last of each range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlans {
    caller: String,
    ranges: Option<Vec<(u16, u16)>>,
}

impl Vlans {
    /// All VLANs.
    pub fn all() -> Self {
        Self { caller: String::new(), ranges: None }
    }

    /// Whether every VLAN from `first` to `last` is among them.
    ///
    /// # Errors
    /// `ScopeNetwork` with those that are not.
    pub fn allow(&self, first: u16, last: u16) -> Result<(), Error> {
        let Some(ranges) = &self.ranges else { return Ok(()) };
        match (first..=last).find(|vlan| !ranges.iter().any(|(a, b)| (*a..=*b).contains(vlan))) {
            None => Ok(()),
            Some(vlan) => Err(Error::ScopeNetwork { caller: self.caller.clone(), what: format!("VLAN {vlan}") }),
        }
    }
}

/// For which tenants each identity may act, as `[[identity]]` says. Replaced as a whole when the configuration is reloaded.
#[derive(Debug)]
pub struct Authorizer {
    rules: ArcSwap<HashMap<String, Scope>>,
}

impl Authorizer {
    /// With the rules of the configuration.
    pub fn new(rules: &[IdentityRule]) -> Self {
        Self { rules: ArcSwap::from_pointee(table(rules)) }
    }

    /// Takes over the rules of a reloaded configuration.
    pub fn replace(&self, rules: &[IdentityRule]) {
        self.rules.store(table(rules).into());
    }

    /// Whether `identity` may do `verb` to `target` on behalf of `tenant` (empty: of no single one, for reads only). That its role may call
    /// the method has been decided before.
    ///
    /// # Errors
    /// `ScopeTenant`: not for this tenant. `ScopeVm`: the VM is another tenant's. A tenant's own client is told `VmNotFound` and
    /// `OperationNotFound` instead, as if what is not its own did not exist.
    pub fn authorize(&self, identity: &Identity, tenant: &str, verb: Verb, target: Target<'_>) -> Result<Decision, Error> {
        let decision = self.may_act_for(identity, tenant, verb)?;
        let own = if let Subject::Tenant { tenant, .. } = &identity.subject { Some(tenant.as_str()) } else { None };
        match target {
            Target::Host | Target::New => Ok(decision),
            Target::Vm { vmid, owner } => match (own, owner) {
                (Some(own), owner) if owner != Some(own) => Err(Error::VmNotFound { what: vmid.to_string() }),
                (None, Some(owner)) if verb == Verb::Mutate && owner != tenant => {
                    Err(Error::ScopeVm { caller: format!("{identity} for tenant '{tenant}'"), vmid })
                }
                _ => Ok(decision),
            },
            Target::Operation { name, tenant: of } => match own {
                Some(own) if own != of => Err(Error::OperationNotFound { name: name.to_owned() }),
                None if verb == Verb::Mutate => self.may_act_for(identity, of, verb),
                _ => Ok(decision),
            },
        }
    }

    /// On which VLANs an identity may have networks made, changed and removed.
    pub fn vlans(&self, identity: &Identity) -> Vlans {
        let caller = identity.to_string();
        let ranges = self.rules.load().get(&caller).and_then(|scope| scope.vlans.clone());
        Vlans { caller, ranges }
    }

    fn may_act_for(&self, identity: &Identity, tenant: &str, verb: Verb) -> Result<Decision, Error> {
        let refused = || Error::ScopeTenant { caller: identity.to_string(), tenant: tenant.to_owned() };
        match (&identity.subject, verb) {
            (Subject::Host { .. }, _) => Err(refused()),
            (Subject::Tenant { tenant: own, .. }, _) if own == tenant => Ok(Decision("its own tenant")),
            (Subject::Tenant { .. }, Verb::Read) if tenant.is_empty() => Ok(Decision("its own tenant")),
            (Subject::Tenant { .. }, _) => Err(refused()),
            (Subject::Role { .. }, Verb::Read) => Ok(Decision("roles read all tenants")),
            (Subject::Role { role: Role::Admin, .. }, Verb::Mutate) => Ok(Decision("administrators act for all tenants")),
            (Subject::Role { .. }, Verb::Mutate) => {
                let rules = self.rules.load();
                if rules.is_empty() {
                    return Ok(Decision("no identity is restricted"));
                }
                match rules.get(&identity.to_string()).map(|scope| &scope.tenants) {
                    Some(Tenants::All) => Ok(Decision("listed for all tenants")),
                    Some(Tenants::These(list)) if list.iter().any(|t| t == tenant) => Ok(Decision("listed for the tenant")),
                    _ => Err(refused()),
                }
            }
        }
    }
}

/// Several rules for one identity add up.
fn table(rules: &[IdentityRule]) -> HashMap<String, Scope> {
    let mut table: HashMap<String, Scope> = HashMap::new();
    for rule in rules {
        let all = rule.tenants.iter().any(|t| t == "*");
        match table.get_mut(&rule.uri) {
            None => {
                let tenants = if all { Tenants::All } else { Tenants::These(rule.tenants.clone()) };
                table.insert(rule.uri.clone(), Scope { tenants, vlans: rule.vlans.clone() });
            }
            Some(scope) => {
                match (&mut scope.tenants, all) {
                    (Tenants::All, _) => {}
                    (tenants, true) => *tenants = Tenants::All,
                    (Tenants::These(list), false) => list.extend(rule.tenants.iter().cloned()),
                }
                scope.vlans = match (scope.vlans.take(), &rule.vlans) {
                    (Some(mut ranges), Some(more)) => {
                        ranges.extend(more);
                        Some(ranges)
                    }
                    _ => None,
                };
            }
        }
    }
    table
}

#[cfg(test)]
mod tests;
