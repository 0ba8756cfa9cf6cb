//! GetNetwork and PlanNetwork: what can be asked without touching anything.

use std::time::{SystemTime, UNIX_EPOCH};

use pvelet_proto::{reason, v1};

use super::{
    Inner,
    change::Asked,
    checkpoint::{self, Found, Phase},
    facts::Gathered,
    planner, preflight, view,
};
use crate::{auth::Vlans, error::Error};

/// The tenant of a plan for which none is known.
const NOBODY: &str = "unknown";

impl Inner {
    /// The network as it is now.
    pub(super) async fn get(&self, request: &v1::GetNetworkRequest) -> Result<v1::GetNetworkResponse, Error> {
        let gathered = self.gather().await?;
        let facts = gathered.facts();
        let (own, _) = gathered.own();
        let (last_change, latched) = match checkpoint::find(&*self.net).await? {
            Found::None => (None, false),
            Found::One(change) => (Some(change.shown()), change.phase == Phase::RollbackFailed),
            Found::Unreadable(why) => {
                let state = v1::NetworkChangeState::RollbackFailed.into();
                (Some(v1::NetworkChange { state, detail: format!("its checkpoint: {why}"), ..v1::NetworkChange::default() }), true)
            }
        };
        let mut pending = view::pending(&facts);
        pending.extend(last_change.as_ref().and_then(own_pending));
        Ok(v1::GetNetworkResponse {
            links: view::links(&facts, &own),
            routes: view::routes(&gathered.kernel),
            networks: view::networks(&facts, &own),
            pending,
            checks: if request.skip_checks { Vec::new() } else { preflight::checks(&facts, None).iter().map(view::check).collect() },
            last_change,
            latched,
        })
    }

    /// How the preflight checks come out, with no change in mind.
    pub(super) async fn preflight(&self) -> Result<Vec<preflight::Check>, Error> {
        Ok(preflight::checks(&self.gather().await?.facts(), None))
    }

    /// What a change would do.
    pub(super) async fn plan_request(&self, request: v1::PlanNetworkRequest, vlans: &Vlans) -> Result<v1::PlanNetworkResponse, Error> {
        let asked = match (request.network, request.remove) {
            (Some(spec), remove) if remove.is_empty() => Asked::Apply(spec),
            (None, remove) if !remove.is_empty() => Asked::Remove(remove),
            _ => return Err(Error::invalid("network", reason::INVALID_FIELD, "name one network to apply, or one to remove")),
        };
        self.not_latched().await?;
        let gathered = self.gather().await?;
        let tenant = Self::tenant(&gathered, &asked);
        let plan = Self::plan(&gathered, &asked, &tenant, vlans)?;
        let checks = preflight::checks(&gathered.facts(), Some(&plan));
        if let Some(text) = plan.new_text.as_deref().filter(|_| !plan.is_empty() && self.vms.inner.manages()) {
            self.checks.begin(&self.net, text);
        }
        let diff = planner::file_diff(&plan);
        Ok(v1::PlanNetworkResponse { plan: Some(view::plan(&plan, diff)), checks: checks.iter().map(view::check).collect() })
    }

    /// For whom a plan is made: as the request says, else for whom the network is. Of a new one that nobody told it makes no difference but in
    /// the text that is shown.
    fn tenant(gathered: &Gathered, asked: &Asked) -> String {
        let (name, tenant) = match asked {
            Asked::Apply(spec) => (&spec.name, spec.tenant.as_str()),
            Asked::Remove(name) => (name, ""),
        };
        if !tenant.is_empty() {
            return tenant.to_owned();
        }
        gathered.own().0.network(name).map_or_else(|| NOBODY.to_owned(), |n| n.tenant.clone())
    }
}

/// The agent's own change, while something is left to be done about it.
fn own_pending(change: &v1::NetworkChange) -> Option<v1::PendingNetworkChange> {
    use v1::NetworkChangeState as S;
    let what = match change.state() {
        S::Prepared | S::Applying => "is being made",
        S::Waiting => "waits for its confirmation",
        S::RollingBack => "is being undone",
        S::RollbackFailed => "could not be undone",
        S::Unspecified | S::Confirmed | S::RolledBack => return None,
    };
    let since = change.begin_time.map(SystemTime::try_from).and_then(Result::ok).unwrap_or(UNIX_EPOCH);
    let since = jiff::Timestamp::try_from(since).map(|t| t.to_string()).unwrap_or_default();
    let detail = format!("{} of network '{}' {what}, since {since}", change.operation, change.network);
    Some(v1::PendingNetworkChange { kind: "pvelet".to_owned(), detail })
}
