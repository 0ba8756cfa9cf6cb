//! The stream of what happens.

use std::{collections::VecDeque, sync::Arc, sync::atomic::Ordering, time::SystemTime};

use futures_util::{Stream, stream};
use pvelet_proto::v1::{self, VmEventType as Kind, watch_host_response::Event};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch as channel,
};

use super::HostView;
use crate::{
    error::Error,
    host::pve::{Change, VmRecord},
    vm::view,
};

/// One client's stream. It holds no queue of its own: what it has not taken yet waits in the broadcast channel, and who lags behind that is
/// ended.
struct Watch {
    view: Arc<HostView>,
    /// A tenant's client sees its own VMs only.
    tenant: Option<String>,
    /// What existed at the beginning, then `Synced`.
    first: VecDeque<Event>,
    changes: broadcast::Receiver<Change>,
    host_changed: channel::Receiver<()>,
    /// The host as it was told last; its load does not count.
    told: Option<v1::Host>,
    ended: bool,
}

impl HostView {
    /// What existed, `synced`, and everything that happens from then on. `tenant`: only VMs whose mark names it.
    ///
    /// # Errors
    /// `PveFsHung` while the VMs are not known yet. In the stream: `SlowConsumer` when the client lags too far behind.
    pub fn watch(
        self: Arc<Self>,
        tenant: Option<&str>,
    ) -> Result<impl Stream<Item = Result<v1::WatchHostResponse, Error>> + Send + use<>, Error> {
        // First the changes, then what is there: nothing falls between the two.
        let (changes, host_changed) = (self.pve.changes(), self.changed.subscribe());
        self.inventory()?;
        let mut first = VecDeque::new();
        let mut request = v1::ListVmsRequest { all_nodes: true, ..v1::ListVmsRequest::default() };
        loop {
            let page = self.vms.list(&request, tenant)?;
            first.extend(page.vms.into_iter().map(|vm| event(Kind::Existing, vm, String::new())));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        first.push_back(Event::Synced(v1::Synced {}));
        let tenant = tenant.map(str::to_owned);
        let watch = Watch { view: self, tenant, first, changes, host_changed, told: None, ended: false };
        Ok(stream::unfold(watch, |mut watch| async move {
            if watch.ended {
                return None;
            }
            let item = watch.next().await?;
            watch.ended = item.is_err();
            Some((item.map(|event| watch.stamp(event)), watch))
        }))
    }
}

fn event(kind: Kind, vm: v1::Vm, from_node: String) -> Event {
    Event::Vm(v1::VmEvent { r#type: kind.into(), vm: Some(vm), from_node })
}

impl Watch {
    fn stamp(&self, event: Event) -> v1::WatchHostResponse {
        self.view.metrics.event();
        let revision = self.view.revision.fetch_add(1, Ordering::Relaxed) + 1;
        v1::WatchHostResponse { revision, time: Some(SystemTime::now().into()), event: Some(event) }
    }

    async fn next(&mut self) -> Option<Result<Event, Error>> {
        if let Some(event) = self.first.pop_front() {
            return Some(Ok(event));
        }
        if self.told.is_none() {
            // The host comes first after the VMs, so that a client knows mode and quorum without another call.
            if let Some(event) = self.host() {
                return Some(Ok(event));
            }
        }
        loop {
            let event = tokio::select! {
                biased;
                change = self.changes.recv() => match change {
                    Ok(change) => self.of_change(change),
                    Err(RecvError::Lagged(_)) => return Some(Err(Error::SlowConsumer)),
                    Err(RecvError::Closed) => return None,
                },
                changed = self.host_changed.changed() => match changed {
                    Ok(()) => self.host(),
                    Err(_) => return None,
                },
            };
            if let Some(event) = event {
                return Some(Ok(event));
            }
        }
    }

    fn of_change(&mut self, change: Change) -> Option<Event> {
        match change {
            Change::VmCreated(vm) => self.vm(Kind::Created, &vm, String::new()),
            Change::VmChanged(vm) => self.vm(Kind::Changed, &vm, String::new()),
            Change::VmStarted(vm) => self.vm(Kind::Started, &vm, String::new()),
            Change::VmStopped(vm) => self.vm(Kind::Stopped, &vm, String::new()),
            Change::VmMoved { vm, from } => self.vm(Kind::Moved, &vm, from),
            Change::VmRemoved(vm) => self.vm(Kind::Removed, &vm, String::new()),
            Change::Cluster => self.host(),
        }
    }

    fn vm(&self, kind: Kind, vm: &VmRecord, from: String) -> Option<Event> {
        if let Some(tenant) = &self.tenant
            && view::bound_mark(vm).is_none_or(|mark| mark.tenant != *tenant)
        {
            return None;
        }
        Some(event(kind, view::to_proto(&self.view.pve.inventory(), vm), from))
    }

    /// The host, if more than its load has changed since it was told last.
    fn host(&mut self) -> Option<Event> {
        // While it cannot be read there is nothing to tell; the next change brings it.
        let host = self.view.host_now().ok()?;
        let steady = without_load(&host);
        if self.told.as_ref() == Some(&steady) {
            return None;
        }
        self.told = Some(steady);
        Some(Event::Host(host))
    }
}

fn without_load(host: &v1::Host) -> v1::Host {
    let storage = |s: &v1::Storage| v1::Storage { total_bytes: 0, available_bytes: 0, ..s.clone() };
    v1::Host { cpu: None, memory: None, storages: host.storages.iter().map(storage).collect(), ..host.clone() }
}
