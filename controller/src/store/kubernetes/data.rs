//! User data from Secrets and ConfigMaps: read when it is needed, never watched, kept nowhere.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};

use super::super::{UserDataError, user_data_of_size};
use crate::{
    kind::UserDataRef,
    kubernetes::{Failure, within},
};

/// Reads what a machine in this namespace refers to.
pub(super) async fn read(client: &Client, namespace: &str, from: &UserDataRef) -> Result<Vec<u8>, UserDataError> {
    let (what, key, found) = if let Some(at) = &from.secret_ref {
        let what = format!("Secret {namespace}/{}", at.name);
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let secret = within(api.get_opt(&at.name)).await.map_err(|e| failed(&what, namespace, "secrets", &e))?;
        let secret = secret.ok_or_else(|| absent(&what))?;
        let value = secret.data.and_then(|mut data| data.remove(&at.key)).map(|value| value.0);
        (what, at.key.clone(), value)
    } else if let Some(at) = &from.config_map_ref {
        let what = format!("ConfigMap {namespace}/{}", at.name);
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let map = within(api.get_opt(&at.name)).await.map_err(|e| failed(&what, namespace, "configMaps", &e))?;
        let map = map.ok_or_else(|| absent(&what))?;
        let text = map.data.and_then(|mut data| data.remove(&at.key)).map(String::into_bytes);
        let value = text.or_else(|| map.binary_data.and_then(|mut data| data.remove(&at.key)).map(|value| value.0));
        (what, at.key.clone(), value)
    } else {
        return Err(absent("spec.cloudInit.userData"));
    };
    match found {
        Some(data) => user_data_of_size(&what, &key, data),
        None => Err(UserDataError::NoKey { what, key }),
    }
}

fn absent(what: &str) -> UserDataError {
    UserDataError::NotFound { what: what.to_owned(), place: String::new() }
}

fn failed(what: &str, namespace: &str, list: &str, failure: &Failure) -> UserDataError {
    let what = what.to_owned();
    match failure.code() {
        Some(401 | 403) => UserDataError::Forbidden {
            what,
            why: "may not be read by the controller".to_owned(),
            remedy: format!("name it in the chart's value userData (namespace: {namespace}, {list}), or bind a Role that allows to get it"),
        },
        _ => UserDataError::Unavailable { what, why: failure.text() },
    }
}
