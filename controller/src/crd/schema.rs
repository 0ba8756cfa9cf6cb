//! From the schemas that schemars makes to structural ones, as an API server wants them.

use kube::core::schema::StructuralSchemaRewriter;
use schemars::{
    JsonSchema, Schema,
    generate::SchemaSettings,
    transform::{RecursiveTransform, transform_subschemas},
};
use serde_json::{Map, Value, json};

/// The schema of a resource.
pub(super) fn of<R: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
        s.transforms.insert(0, Box::new(plain as fn(&mut Schema)));
    });
    let generator = settings.with_transform(StructuralSchemaRewriter).with_transform(RecursiveTransform(as_stored)).into_generator();
    let mut schema = generator.into_root_schema_for::<R>().to_value();
    if let Some(root) = schema.as_object_mut() {
        root.remove("title");
    }
    // What an API server knows anyway, for a bound on the name, without which rules on it are refused as too costly.
    schema["properties"]["apiVersion"] = json!({"type": "string"});
    schema["properties"]["kind"] = json!({"type": "string"});
    schema["properties"]["metadata"] = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 253}, "generateName": {"type": "string"}},
    });
    // What the controller writes is whole: nothing is added to it.
    without_defaults(&mut schema["properties"]["status"]);
    schema
}

/// Optional fields are those that may be left out, not those that may be null; and of enums every value's meaning stays.
fn plain(schema: &mut Schema) {
    transform_subschemas(&mut (plain as fn(&mut Schema)), schema);
    let Some(object) = schema.as_object_mut() else { return };
    optional(object);
    variants(object);
}

fn optional(schema: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|t| t != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|v| !v.is_null());
    }
    let nothing = |s: &Value| s["type"] == "null";
    if let Some(Value::Array(any)) = schema.get_mut("anyOf")
        && any.iter().any(nothing)
    {
        any.retain(|s| !nothing(s));
        if let [Value::Object(only)] = any.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            // What is said at the field is about the field.
            for (key, value) in only {
                match (key.as_str(), schema.get_mut(&key)) {
                    (_, None) => drop(schema.insert(key, value)),
                    ("x-kubernetes-validations", Some(Value::Array(rules))) => rules.extend(value.as_array().cloned().unwrap_or_default()),
                    _ => {}
                }
            }
        }
    }
}

/// An enum whose values are described one by one becomes one that describes them all.
fn variants(schema: &mut Map<String, Value>) {
    let constant = |v: &Value| Some((v.get("const")?.as_str()?.to_owned(), v["description"].as_str().unwrap_or_default().to_owned()));
    let found: Option<Vec<_>> = schema.get("oneOf").and_then(Value::as_array).and_then(|of| of.iter().map(constant).collect());
    let Some(found) = found else { return };
    schema.remove("oneOf");
    schema.insert("type".into(), json!("string"));
    schema.insert("enum".into(), found.iter().map(|(value, _)| json!(value)).collect());
    let told = found.iter().map(|(value, text)| format!("\n- `{value}`: {text}")).collect::<String>();
    schema.insert(VALUES.into(), json!(told));
}

/// Until it is known what the field's own description is, that of its values stands apart.
const VALUES: &str = "x-pvelet-values";

/// Formats that an API server does not know are bounds instead; descriptions are whole.
fn as_stored(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    if let Some(Value::String(format)) = object.get("format") {
        let most = match format.as_str() {
            "uint8" => Some(u32::from(u8::MAX)),
            "uint16" => Some(u32::from(u16::MAX)),
            "uint32" => Some(u32::MAX),
            _ => None,
        };
        if format.starts_with("uint") {
            object.remove("format");
            if let Some(most) = most {
                object.entry("maximum").or_insert(json!(most));
            }
        }
    }
    for bound in ["minimum", "maximum"] {
        // 1.0 and 1 are the same number; in YAML they do not look so.
        if let Some(whole) = object.get(bound).and_then(Value::as_f64).and_then(|n| n.to_string().parse::<i64>().ok()) {
            object.insert(bound.into(), json!(whole));
        }
    }
    if let Some(Value::String(values)) = object.remove(VALUES) {
        let text = object.get("description").and_then(Value::as_str).unwrap_or_default();
        object.insert("description".into(), json!(format!("{text}{values}")));
    }
}

fn without_defaults(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("default");
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(without_defaults);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            without_defaults(inner);
        }
    }
}
