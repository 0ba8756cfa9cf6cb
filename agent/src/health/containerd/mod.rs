//! containerd: whether it runs, answers, and makes pods; what its configuration says.

mod concern;
pub mod config;
mod live;
mod probe;
mod ready;
#[cfg(test)]
mod tests;
mod unit;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

pub use self::probe::Probe;
pub(crate) use self::probe::untried;
#[cfg(test)]
pub(crate) use self::probe::without_image;
use self::{concern::Concern, config::ConfigSource, live::Live, probe::Sandbox, ready::Ready, unit::Unit};
use super::{
    Pace, Source,
    kubelet::facts::KubeletFacts,
    repair::{Edit, Mender},
};
use crate::{
    error::Error,
    host::{
        runtime::{Runtime, RuntimeFiles},
        units::Units,
    },
};

/// How often the daemon is asked whether it answers.
const EACH_SECOND: Duration = Duration::from_secs(1);

/// What the daemon answers from its memory takes milliseconds; the rest is for a loaded host.
const PATIENCE: Duration = Duration::from_secs(5);

/// The sources of this group. `runtime` asks at `settings.containerd_socket`, `files` reads `settings.containerd_config`.
/// `facts` is asked where something is not well.
pub fn sources(
    settings: &crate::config::Health,
    runtime: &Arc<dyn Runtime>,
    files: &Arc<dyn RuntimeFiles>,
    units: &Arc<dyn Units>,
    facts: &FactsLook,
) -> Vec<Arc<dyn Source>> {
    let concern = Arc::new(Concern::new(settings, Arc::clone(files), Arc::clone(units), Arc::clone(facts)));
    // Changes when the daemon has come back: what it is asked once in a while is then asked anew.
    let back = Arc::new(tokio::sync::watch::Sender::new(0));
    vec![
        Arc::new(Unit::new(Arc::clone(&concern), Arc::clone(runtime), settings.period)),
        Arc::new(Live::new(Arc::clone(&concern), Arc::clone(runtime), Arc::clone(&back))),
        Arc::new(Ready::new(Arc::clone(&concern), Arc::clone(runtime), &back, settings)),
        Arc::new(Sandbox::new(concern, Probe::new(Arc::clone(runtime), Arc::clone(files)), &back, settings.probe_period)),
    ]
}

/// Often, with a deadline that lets several calls run into theirs.
fn pace(period: Duration) -> Pace {
    Pace { period, deadline: PATIENCE * 4 }
}

/// Reads what containerd and the kubelet must agree on. Errors: why there is no kubelet.
pub type FactsLook = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<KubeletFacts, String>> + Send>> + Send + Sync>;

/// The source of the configuration's checks, which can also mend it. `facts` is asked at each look.
pub fn config_source(
    settings: &crate::config::Health,
    runtime: &Arc<dyn Runtime>,
    files: &Arc<dyn RuntimeFiles>,
    facts: &FactsLook,
) -> Arc<ConfigSource> {
    let facts = Arc::clone(facts);
    let kubelet: config::KubeletLook = Arc::new(move || {
        let facts = Arc::clone(&facts);
        Box::pin(async move { facts().await.ok() })
    });
    Arc::new(ConfigSource::new(settings, Arc::clone(runtime), Arc::clone(files), kubelet))
}

#[tonic::async_trait]
impl Mender for ConfigSource {
    async fn mend(&self) -> Result<Vec<Edit>, Error> {
        let edit = |m: config::Mended| Edit { path: m.path, was: m.was, text: m.text, mends: m.mends, partly: m.partly };
        Ok(Self::mend(self).await?.into_iter().map(edit).collect())
    }
}
