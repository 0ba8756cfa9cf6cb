//! `PveTenant`: says whether its namespaces are its own. And for a machine: whose it is.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;

use super::machine::Next;
use crate::{
    kind::{ConditionStatus, Kind, ObjectKey, PveMachine, PveTenant, Tenant, set_condition},
    store::{Store, StoreError, Tenancy},
};

/// Why a machine has no tenant: a stable word, and a text with the remedy.
pub(super) type Refusal = (&'static str, String);

pub(super) struct Tenants<S> {
    store: Arc<S>,
    /// The namespaces of each, as they were last.
    namespaces: Mutex<HashMap<ObjectKey, BTreeSet<String>>>,
}

impl<S: Store> Tenants<S> {
    pub(super) fn new(store: Arc<S>) -> Self {
        Self { store, namespaces: Mutex::default() }
    }

    /// The namespaces that came to this tenant or went from it since this was asked last.
    pub(super) async fn changed(&self, key: &ObjectKey) -> Result<BTreeSet<String>, StoreError> {
        let now = self.store.get::<Tenant>(key).await?.map(|t| t.spec.namespaces.into_iter().collect::<BTreeSet<_>>());
        let mut known = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match &now {
            Some(now) => known.insert(key.clone(), now.clone()),
            None => known.remove(key),
        };
        Ok(now.unwrap_or_default().symmetric_difference(&before.unwrap_or_default()).cloned().collect())
    }

    /// The others that claim one of these namespaces have something else to tell now.
    pub(super) async fn rivals(&self, key: &ObjectKey, namespaces: &BTreeSet<String>) -> Result<Vec<ObjectKey>, StoreError> {
        let all = self.store.list::<Tenant>().await?;
        let rival = |t: &&Arc<PveTenant>| t.key() != *key && t.spec.namespaces.iter().any(|n| namespaces.contains(n));
        Ok(all.iter().filter(rival).map(|t| t.key()).collect())
    }

    pub(super) async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StoreError> {
        let Some(mut tenant) = self.store.get::<Tenant>(key).await? else { return Ok(Next::Sleep) };
        let generation = tenant.metadata.generation;
        let disputed: Vec<String> = tenant
            .spec
            .namespaces
            .iter()
            .filter_map(|namespace| match self.store.tenancy(namespace) {
                Tenancy::Disputed(tenants) => Some(format!("{namespace} ({})", tenants.join(", "))),
                _ => None,
            })
            .collect();
        let mistakes = Tenant::check(&tenant.metadata, &tenant.spec);
        let (status, reason, message) = if !mistakes.is_empty() {
            (ConditionStatus::False, super::INVALID, super::told(&mistakes))
        } else if disputed.is_empty() {
            (ConditionStatus::True, "Bound", String::new())
        } else {
            let text = format!("claimed by several tenants: {}; leave each namespace to one, until then none has it", disputed.join("; "));
            (ConditionStatus::False, "NamespaceDisputed", text)
        };
        tenant.status.observed_generation = generation;
        set_condition(&mut tenant.status.conditions, "Ready", status, reason, message, generation, Timestamp::now());
        self.store.update_status(&tenant).await?;
        Ok(Next::Sleep)
    }
}

/// Whose a machine in this namespace is; or why it is nobody's. Pure.
///
/// A machine that was made for a tenant stays that tenant's for as long as the namespace is: its request ids, its VM's mark and its volumes are.
pub(super) fn of(machine: &PveMachine, namespace: &str, tenancy: Tenancy) -> Result<String, Refusal> {
    let named = machine.spec.tenant.as_deref();
    let tenant = match tenancy {
        Tenancy::Unbound => return Ok(machine.tenant().to_owned()),
        Tenancy::Of(tenant) => tenant,
        Tenancy::Nobody => {
            let text = format!("namespace {namespace} is no tenant's: an administrator adds it to spec.namespaces of a PveTenant");
            return Err(("NamespaceNotBound", text));
        }
        Tenancy::Disputed(tenants) => {
            let text = format!("namespace {namespace} is claimed by the PveTenants {}; leave it to one of them", tenants.join(", "));
            return Err(("NamespaceDisputed", text));
        }
    };
    if let Some(other) = named.filter(|named| *named != tenant) {
        let text = format!("spec.tenant is {other}, but namespace {namespace} is tenant {tenant}'s: leave spec.tenant out");
        return Err(("TenantNotAllowed", text));
    }
    if let Some(made_for) = machine.status.tenant.as_deref().filter(|made_for| *made_for != tenant) {
        let text = format!(
            "the VM was made for tenant {made_for}, but namespace {namespace} is tenant {tenant}'s now: give the namespace back to \
             {made_for}, or delete this machine"
        );
        return Err(("TenantChanged", text));
    }
    Ok(tenant)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kind::{MachineSpec, MachineStatus, Metadata};

    #[test]
    fn a_machine_is_its_namespaces_tenants_and_no_other_ones() {
        let machine = |named: Option<&str>, made_for: Option<&str>| PveMachine {
            metadata: Metadata { name: "web-1".into(), ..Metadata::default() },
            spec: MachineSpec {
                tenant: named.map(str::to_owned),
                ..serde_json::from_str::<MachineSpec>(r#"{"source": {"template": 100}}"#).unwrap()
            },
            status: MachineStatus { tenant: made_for.map(str::to_owned), ..MachineStatus::default() },
        };
        let shop = || Tenancy::Of("shop".into());
        type Row = (Option<&'static str>, Option<&'static str>, Tenancy, Result<&'static str, &'static str>);
        let rows: Vec<Row> = vec![
            (None, None, Tenancy::Unbound, Ok("default")),
            (Some("a"), None, Tenancy::Unbound, Ok("a")),
            (Some("b"), Some("a"), Tenancy::Unbound, Ok("a")),
            (None, None, shop(), Ok("shop")),
            (Some("shop"), Some("shop"), shop(), Ok("shop")),
            (Some("bank"), None, shop(), Err("TenantNotAllowed")),
            (None, Some("bank"), shop(), Err("TenantChanged")),
            (None, None, Tenancy::Nobody, Err("NamespaceNotBound")),
            (None, Some("shop"), Tenancy::Nobody, Err("NamespaceNotBound")),
            (None, None, Tenancy::Disputed(vec!["a".into(), "b".into()]), Err("NamespaceDisputed")),
        ];
        for (named, made_for, tenancy, want) in rows {
            let found = of(&machine(named, made_for), "ns", tenancy.clone());
            assert_eq!(found.as_deref().map_err(|e| e.0), want, "{named:?} {made_for:?} {tenancy:?}");
        }
    }
}
