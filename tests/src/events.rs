//! The streams of an agent, waited on with a deadline.

use std::time::Duration;

use pvelet_proto::v1::{self, VmEventType, watch_host_response::Event};
use tonic::{Status, Streaming};

use crate::{Client, agent::SOON};

async fn in_time<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}

/// What happens on a host, as one client sees it.
#[derive(Debug)]
pub struct HostEvents {
    stream: Streaming<v1::WatchHostResponse>,
    /// VMs that existed at the beginning.
    pub existing: Vec<v1::Vm>,
    /// Every VM event taken so far.
    pub seen: Vec<v1::VmEvent>,
    /// Revisions of all messages taken so far.
    pub revisions: Vec<u64>,
}

impl HostEvents {
    /// Opens the stream and takes its initial part.
    pub async fn open(client: &Client) -> Self {
        Self::try_open(client).await.expect("the stream begins")
    }

    /// As [`Self::open`]; the failure is returned.
    pub async fn try_open(client: &Client) -> Result<Self, Status> {
        let stream = client.agent.host().watch_host(v1::WatchHostRequest {}).await?.into_inner();
        let mut this = Self { stream, existing: Vec::new(), seen: Vec::new(), revisions: Vec::new() };
        loop {
            match in_time("synced", SOON, this.next()).await? {
                Event::Vm(e) if e.r#type() == VmEventType::Existing => this.existing.extend(e.vm),
                Event::Vm(e) => this.seen.push(e),
                Event::Host(_) => {}
                Event::Synced(_) => return Ok(this),
            }
        }
    }

    /// The next message. The end of the stream is an error.
    pub async fn next(&mut self) -> Result<Event, Status> {
        let message = self.stream.message().await?.ok_or_else(|| Status::cancelled("the stream ended"))?;
        self.revisions.push(message.revision);
        Ok(message.event.expect("an event"))
    }

    /// Waits for a VM event and returns it; all until then are kept in [`Self::seen`].
    pub async fn until_vm(&mut self, what: &str, wanted: impl Fn(&v1::VmEvent) -> bool) -> v1::VmEvent {
        let wait = async {
            loop {
                if let Event::Vm(event) = self.next().await.expect("the stream goes on") {
                    self.seen.push(event.clone());
                    if wanted(&event) {
                        return event;
                    }
                }
            }
        };
        in_time(what, SOON, wait).await
    }

    /// Waits for an event of this kind about this VM.
    pub async fn until(&mut self, kind: VmEventType, vmid: u32) -> v1::Vm {
        let what = format!("{} of VM {vmid}", kind.as_str_name());
        let event = self.until_vm(&what, |e| e.r#type() == kind && e.vm.as_ref().is_some_and(|vm| vm.vmid == vmid)).await;
        event.vm.expect("a VM")
    }

    /// Waits until the host tells something about itself.
    pub async fn until_host(&mut self, what: &str, wanted: impl Fn(&v1::Host) -> bool) -> v1::Host {
        let wait = async {
            loop {
                match self.next().await.expect("the stream goes on") {
                    Event::Host(host) if wanted(&host) => return host,
                    Event::Vm(event) => self.seen.push(event),
                    _ => {}
                }
            }
        };
        in_time(what, SOON, wait).await
    }

    /// Waits until the agent ends the stream, and returns with what.
    pub async fn ended(&mut self) -> Status {
        let wait = async {
            loop {
                if let Err(status) = self.next().await {
                    return status;
                }
            }
        };
        in_time("the end of the stream", SOON, wait).await
    }

    /// Kinds of the events about one VM, in their order.
    pub fn kinds(&self, vmid: u32) -> Vec<VmEventType> {
        self.seen.iter().filter(|e| e.vm.as_ref().is_some_and(|vm| vm.vmid == vmid)).map(v1::VmEvent::r#type).collect()
    }

    /// How many events of this kind about this VM were seen.
    pub fn count(&self, kind: VmEventType, vmid: u32) -> usize {
        self.kinds(vmid).into_iter().filter(|k| *k == kind).count()
    }
}

/// What an agent does, as one client sees it.
#[derive(Debug)]
pub struct OperationEvents {
    stream: Streaming<v1::WatchOperationsResponse>,
    /// What was told before the mark that ends the initial part.
    pub first: Vec<v1::Operation>,
    /// What was told after it.
    pub seen: Vec<v1::Operation>,
}

impl OperationEvents {
    /// Opens the stream for a client's tenant and takes its initial part.
    pub async fn open(client: &Client, since_revision: u64) -> Self {
        let request = v1::WatchOperationsRequest { tenant: client.tenant.clone(), since_revision };
        let stream = client.agent.operation().watch_operations(request).await.expect("the stream begins").into_inner();
        let mut this = Self { stream, first: Vec::new(), seen: Vec::new() };
        while let Some(op) = in_time("the initial part", SOON, this.next()).await.expect("the stream goes on") {
            this.first.push(op);
        }
        this
    }

    /// The next snapshot; `None` is the mark that ends the initial part.
    pub async fn next(&mut self) -> Result<Option<v1::Operation>, Status> {
        Ok(self.stream.message().await?.ok_or_else(|| Status::cancelled("the stream ended"))?.operation)
    }

    /// Waits for a snapshot.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&v1::Operation) -> bool) -> v1::Operation {
        self.until_within(what, SOON, wanted).await
    }

    /// Waits for a snapshot for so long.
    pub async fn until_within(&mut self, what: &str, limit: Duration, wanted: impl Fn(&v1::Operation) -> bool) -> v1::Operation {
        if let Some(op) = self.first.iter().find(|op| wanted(op)) {
            return op.clone();
        }
        let wait = async {
            loop {
                if let Some(op) = self.next().await.expect("the stream goes on") {
                    self.seen.push(op.clone());
                    if wanted(&op) {
                        return op;
                    }
                }
            }
        };
        in_time(what, limit, wait).await
    }

    /// Waits for the end of the operation of a request.
    pub async fn ended(&mut self, request_id: &str) -> v1::Operation {
        let known = self.seen.iter().find(|op| op.request_id == request_id && op.end_time.is_some()).cloned();
        match known {
            Some(op) => op,
            None => self.until(&format!("the end of {request_id}"), |op| op.request_id == request_id && op.end_time.is_some()).await,
        }
    }
}
