//! A change as a controller drives it: begun on one connection, confirmed on another.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use pvelet_controller::tls::TlsError;
use pvelet_proto::v1;
use pvelet_tests::{Client, client::operation_reason};
use tonic::{Code, Status};

use crate::host::{Api, SOON};

/// How long a host may take for a connection, as for an answer to `ping`.
const REACHED: Duration = Duration::from_secs(120);
/// The step of an operation that waits for its confirmation.
const WAITING: &str = "waiting for confirmation";

/// What is asked for.
#[derive(Debug, Clone)]
pub enum Wish {
    Apply(v1::NetworkSpec),
    Remove(String),
}

/// A change under way.
#[derive(Clone)]
pub struct Drive {
    pub api: Api,
    pub request_id: String,
    pub confirm_timeout: Duration,
    /// How long a connection may take; what is refused or lost is not tried again.
    pub patience: Duration,
}

pub fn ended(op: &v1::Operation) -> bool {
    op.end_time.is_some()
}

pub fn waiting(op: &v1::Operation) -> bool {
    op.step == WAITING
}

impl Drive {
    /// A request with an id of its own.
    pub fn new(api: &Api) -> Self {
        Self {
            api: api.clone(),
            request_id: uuid::Uuid::new_v4().to_string(),
            confirm_timeout: Duration::from_secs(120),
            patience: REACHED,
        }
    }

    /// The same that gives up a connection as the client does: who shall be killed meanwhile must not be met after the next start.
    pub fn at_once(self) -> Self {
        Self { patience: Duration::ZERO, ..self }
    }

    /// The same with another time to confirm.
    pub fn within(self, confirm_timeout: Duration) -> Self {
        Self { confirm_timeout, ..self }
    }

    fn meta(&self, client: &Client) -> Option<v1::RequestMeta> {
        client.meta_at_once(&self.request_id)
    }

    /// Asks for the change. The operation runs on.
    pub async fn begin(&self, client: &Client, wish: &Wish) -> Result<v1::Operation, Status> {
        let (meta, confirm_timeout) = (self.meta(client), self.confirm_timeout.try_into().ok());
        let operation = match wish.clone() {
            Wish::Apply(network) => {
                let request = v1::ApplyNetworkRequest { meta, network: Some(network), confirm_timeout };
                connected(self.patience, || async { client.agent.network().apply_network(request.clone()).await })
                    .await?
                    .into_inner()
                    .operation
            }
            Wish::Remove(name) => {
                let request = v1::RemoveNetworkRequest { meta, name, confirm_timeout };
                connected(self.patience, || async { client.agent.network().remove_network(request.clone()).await })
                    .await?
                    .into_inner()
                    .operation
            }
        };
        Ok(operation.expect("operation"))
    }

    /// Waits until the operation is as wanted, or ends.
    pub async fn until(&self, client: &Client, wanted: impl Fn(&v1::Operation) -> bool) -> Result<v1::Operation, Status> {
        let request = v1::WatchOperationsRequest { tenant: client.tenant.clone(), since_revision: 0 };
        let watch = || async { client.agent.operation().watch_operations(request.clone()).await };
        let mut stream = connected(self.patience, watch).await?.into_inner();
        let list = v1::ListOperationsRequest {
            tenant: client.tenant.clone(),
            request_id: self.request_id.clone(),
            ..v1::ListOperationsRequest::default()
        };
        let known = client.agent.operation().list_operations(list).await?.into_inner().operations;
        let mine = |op: &v1::Operation| op.request_id == self.request_id && (ended(op) || wanted(op));
        if let Some(op) = known.into_iter().find(mine) {
            return Ok(op);
        }
        let wait = async {
            loop {
                let message = stream.message().await?.ok_or_else(|| Status::cancelled("the stream ended"))?;
                if let Some(op) = message.operation.filter(mine) {
                    return Ok(op);
                }
            }
        };
        tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("the operation went on for too long")))
    }

    /// Confirms over a new connection.
    pub async fn confirm(&self, operation: &str) -> Result<v1::NetworkChange, Status> {
        let client = self.api.fresh();
        let meta = client.meta_at_once(&format!("{}-confirm", self.request_id));
        let request = v1::ConfirmNetworkRequest { meta, operation: operation.into() };
        let confirm = || async { client.agent.network().confirm_network(request.clone()).await };
        Ok(connected(self.patience, confirm).await?.into_inner().change.unwrap_or_default())
    }

    /// Undoes it.
    pub async fn roll_back(&self, client: &Client, operation: &str) -> Result<v1::NetworkChange, Status> {
        let meta = client.meta_at_once(&format!("{}-rollback-{}", self.request_id, uuid::Uuid::new_v4()));
        let request = v1::RollbackNetworkRequest { meta, operation: operation.into() };
        let roll_back = || async { client.agent.network().rollback_network(request.clone()).await };
        Ok(connected(self.patience, roll_back).await?.into_inner().change.unwrap_or_default())
    }

    /// Begins it, and waits until it waits for confirmation or has ended.
    pub async fn applied(&self, wish: &Wish) -> Result<v1::Operation, Status> {
        let client = self.api.fresh();
        self.begin(&client, wish).await?;
        self.until(&client, waiting).await
    }

    /// The end of an operation that was left: confirmed, where it waits for that.
    pub async fn finish(&self) -> Result<v1::Operation, Status> {
        let client = self.api.fresh();
        let op = self.until(&client, waiting).await?;
        if ended(&op) {
            return Ok(op);
        }
        self.confirm(&op.name).await?;
        self.until(&self.api.fresh(), ended).await
    }

    /// The whole change.
    pub async fn carry(&self, wish: &Wish) -> Result<v1::Operation, Status> {
        let client = self.api.fresh();
        self.begin(&client, wish).await?;
        self.finish().await
    }

    /// The whole change, but undone instead of confirmed.
    pub async fn carry_back(&self, wish: &Wish) -> Result<v1::Operation, Status> {
        let op = self.applied(wish).await?;
        if ended(&op) {
            return Ok(op);
        }
        let client = self.api.fresh();
        self.roll_back(&client, &op.name).await?;
        self.until(&client, ended).await
    }
}

/// Calls, again while no connection is made within the client's 5 s: an emulated guest may need longer for one. What comes to an answer, is
/// refused or breaks off is told at once.
async fn connected<T, F: Future<Output = Result<T, Status>>>(patience: Duration, call: impl Fn() -> F) -> Result<T, Status> {
    let end = Instant::now() + patience;
    loop {
        match call().await {
            Err(status) if in_vain(&status) && Instant::now() < end => {}
            result => return result,
        }
    }
}

/// Whether the client gave up waiting for a connection.
fn in_vain(status: &Status) -> bool {
    matches!(status.source().and_then(TlsError::find), Some(TlsError::Timeout { .. }))
}

/// What the network's service says now.
pub async fn look(api: &Api, skip_checks: bool) -> Result<v1::GetNetworkResponse, Status> {
    let client = api.fresh();
    let request = v1::GetNetworkRequest { skip_checks };
    Ok(connected(REACHED, || async { client.agent.network().get_network(request).await }).await?.into_inner())
}

/// How an operation ended, for people.
pub fn told(result: &Result<v1::Operation, Status>) -> String {
    match result {
        Ok(op) if op.state() == v1::OperationState::Succeeded => "succeeded".into(),
        Ok(op) => {
            let message = op.error.as_ref().map(|e| e.message.clone()).unwrap_or_default();
            format!("{} {}: {message}", op.state().as_str_name(), operation_reason(op))
        }
        Err(status) if status.code() == Code::Unavailable => format!("no answer: {}", status.message()),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}
