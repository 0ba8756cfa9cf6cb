//! The table of calls: method, path pattern, parameters, handler.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Failure, Params, Schema, server::Settings};
use crate::layout::NodeLayout;

/// One verified call on its way to its handler.
pub struct Call {
    /// The node that serves it.
    pub layout: NodeLayout,
    /// Who calls, `root@pam`.
    pub user: String,
    /// The verified parameters, those of the path among them.
    pub params: Params,
    /// How this daemon is set up.
    pub settings: Arc<Settings>,
}

impl Call {
    /// Starts a task for this caller.
    pub fn task(&self, kind: &str, id: &str, action: &str, args: Value) -> Result<Reply, Failure> {
        let job = crate::task::Job { action: action.to_owned(), args };
        let upid = crate::task::spawn(&self.layout, &self.settings, kind, id, &self.user, &job)?;
        Ok(Reply::from(Value::String(upid.to_string())))
    }
}

/// What a handler answers.
#[derive(Debug, Default)]
pub struct Reply {
    /// `data` of the body.
    pub data: Value,
    /// Other members of the body beside `data`, `total` for instance.
    pub extra: Map<String, Value>,
    /// Sent as it is, as `text/plain`, instead of JSON.
    pub plain: Option<String>,
}

impl From<Value> for Reply {
    fn from(data: Value) -> Self {
        Self { data, ..Self::default() }
    }
}

/// Serves a call. It runs on a worker thread and may block: that is what a call to a hung file system does.
pub type Handler = fn(&Call) -> Result<Reply, Failure>;

/// One call of the API.
pub struct Route {
    /// `GET`, `POST`, `PUT` or `DELETE`.
    pub method: &'static str,
    /// The path below `/api2/json`, with names in braces: `/nodes/{node}/qemu/{vmid}/config`.
    pub path: &'static str,
    /// The parameters, those of the path among them (`{node}` need not be listed).
    pub schema: Schema,
    /// Serves it.
    pub handler: Handler,
}

impl Route {
    /// A call.
    pub fn new(method: &'static str, path: &'static str, schema: impl Into<Schema>, handler: Handler) -> Self {
        Self { method, path, schema: schema.into(), handler }
    }

    fn matches(&self, segments: &[String]) -> Option<Vec<(&'static str, String)>> {
        let mut found = Vec::new();
        let mut given = segments.iter();
        let mut wanted = self.path.split('/').filter(|part| !part.is_empty()).peekable();
        while let Some(part) = wanted.next() {
            let text = given.next()?;
            match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
                // A volume's path has slashes of its own.
                Some("volume") if wanted.peek().is_none() => {
                    let rest: Vec<&str> = std::iter::once(text.as_str()).chain(given.by_ref().map(String::as_str)).collect();
                    found.push(("volume", rest.join("/")));
                }
                Some(name) => found.push((name, text.clone())),
                None if part == text => {}
                None => return None,
            }
        }
        given.next().is_none().then_some(found)
    }
}

/// All calls of a daemon.
pub struct Table(Vec<Route>);

impl Table {
    /// What a simulated node offers.
    pub fn standard() -> Self {
        let mut routes = super::vm::routes();
        routes.extend(super::tasks::routes());
        routes.extend(super::storage::routes());
        routes.extend(super::storage_content::routes());
        routes.extend(super::storage_config::routes());
        routes.extend(super::cluster::routes());
        routes.extend(super::cluster_access::routes());
        routes.extend(super::cluster_ha::routes());
        routes.extend(super::cluster_network::routes());
        routes.extend(super::cluster_options::routes());
        routes.extend(super::cluster_pools::routes());
        routes.extend(super::cluster_resources::routes());
        Self(routes)
    }

    /// The call for `method` and the decoded path segments, with the values of the path's names. Literal segments win over names.
    pub fn find(&self, method: &str, segments: &[String]) -> Option<(&Route, Vec<(&'static str, String)>)> {
        self.0
            .iter()
            .filter(|route| route.method == method)
            .filter_map(|route| route.matches(segments).map(|names| (route, names)))
            .min_by_key(|(_, names)| names.len())
    }

    /// Every call, as "METHOD path".
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|route| format!("{} {}", route.method, route.path))
    }
}
