//! Objects on which nothing is done, because of what their spec says.

use jiff::Timestamp;

use crate::{
    kind::{ConditionStatus, FieldError, Kind, Object, set_condition},
    store::{Store, StoreError},
};

/// The reason of a spec that the agents would not take.
pub(super) const INVALID: &str = "InvalidSpec";
/// More mistakes than this in one message help nobody.
const TOLD: usize = 10;

/// What is wrong with a spec, for people. Nothing in a folder, where such manifests are not taken in; in Kubernetes what the definition's rules
/// cannot tell, or did not tell when the object was stored.
pub(super) fn invalid<K: Kind>(object: &Object<K>) -> Option<String> {
    let mistakes = K::check(&object.metadata, &object.spec);
    (!mistakes.is_empty()).then(|| told(&mistakes))
}

/// Mistakes in one text.
pub(super) fn told(mistakes: &[FieldError]) -> String {
    let mut texts: Vec<String> = mistakes.iter().take(TOLD).map(ToString::to_string).collect();
    if mistakes.len() > TOLD {
        texts.push(format!("and {} more", mistakes.len() - TOLD));
    }
    texts.join("; ")
}

/// Says at an object why nothing is done with it.
pub(super) async fn refuse<K: Kind>(store: &impl Store, mut object: Object<K>, reason: &str, message: String) -> Result<(), StoreError> {
    let generation = object.metadata.generation;
    let (conditions, observed) = K::told(&mut object.status);
    *observed = generation;
    set_condition(conditions, "Ready", ConditionStatus::False, reason, message, generation, Timestamp::now());
    store.update_status(&object).await.map(drop)
}
