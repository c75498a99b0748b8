//! The OpenAPI description of all routes, generated from the table of routes and the types of request bodies.

use std::sync::OnceLock;

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    knobs::Knobs,
    routes::table::{Handler, ROUTES, Route},
    wire::{
        chat::Chat,
        completions::{Completion, Detokenize, Tokenize},
        generation::Generation,
        messages::Messages,
        responses::Responses,
    },
};

/// The OpenAPI 3.1 document.
pub(crate) fn document() -> Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(made).clone()
}

fn made() -> Value {
    let settings = SchemaSettings::draft2020_12().for_deserialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in ROUTES {
        // Model names contain slashes, which parameters of OpenAPI do not support.
        let path = route.path.replace("{*model}", "{model}");
        let operation = operation(route, &mut generator);
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[route.method.to_lowercase()] = operation;
    }
    let mut schemas = generator.take_definitions(true);
    schemas.insert("Error".to_owned(), error());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "moi",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's API, with an input rule for each request: see the field `moi`.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn error() -> Value {
    let text = json!({"type": ["string", "null"]});
    json!({
        "type": "object",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"}, "type": {"type": "string"}, "param": text,
                "code": {"type": ["string", "integer", "null"]},
            },
        }},
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let kind = match route.what {
        Handler::Metrics => "text/plain",
        Handler::Docs | Handler::Page => "text/html",
        _ => "application/json",
    };
    let failed = |what: &str| {
        json!({
            "description": what,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        })
    };
    let schema = if kind == "application/json" { "object" } else { "string" };
    let mut content = json!({kind: {"schema": {"type": schema}}});
    let mut responses = json!({"503": failed("The model is being loaded, or the server is stopping")});
    if !route.is_open {
        responses["401"] = failed("The key is missing or wrong");
    }
    responses["403"] = failed("The host, or the page's origin, is not allowed");
    let mut operation = json!({
        "summary": route.summary,
        "operationId": format!("{}{}", route.method.to_lowercase(), route.path.replace(['/', '{', '}', '*', '.'], "_")),
        "security": if route.is_open { json!([]) } else { json!([{"key": []}, {}]) },
    });
    if let Some(schema) = request(route.what, generator) {
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
        for (status, what) in [
            ("400", "The request is wrong"),
            ("404", "The model is not served"),
            ("408", "The body did not come in time"),
            ("413", "The body is too large"),
            ("415", "The body is no JSON"),
            ("429", "Too many requests wait"),
            ("500", "The server failed"),
        ] {
            responses[status] = failed(what);
        }
    }
    if matches!(route.what, Handler::Messages | Handler::CountTokens) {
        responses["529"] = failed("The model is being loaded, or the server is stopping");
    }
    if matches!(route.what, Handler::Chat | Handler::Completions | Handler::Responses | Handler::Messages) {
        content["text/event-stream"] = json!({"schema": {"type": "string"}});
    }
    if route.path.contains("{file}") {
        responses["304"] = json!({"description": "The file is as it was"});
        responses["404"] = failed("There is no such file");
        operation["parameters"] =
            json!([{"name": "file", "in": "path", "required": true, "schema": {"type": "string"}}]);
        for kind in ["text/javascript", "text/css", "image/svg+xml"] {
            content[kind] = json!({"schema": {"type": "string"}});
        }
    }
    if route.what == Handler::Model {
        responses["404"] = failed("The model is not served");
        let schema = json!({"type": "string"});
        operation["parameters"] =
            json!([{"name": "model", "in": "path", "required": true, "schema": schema}]);
    }
    responses["200"] = json!({"description": "Done", "content": content});
    operation["responses"] = responses;
    operation
}

/// The schema of a route's body.
fn request(what: Handler, generator: &mut SchemaGenerator) -> Option<Value> {
    let mut schemas = match what {
        Handler::Chat | Handler::Render => {
            vec![properties::<Generation>(generator), properties::<Chat>(generator)]
        }
        Handler::Completions => {
            vec![properties::<Generation>(generator), properties::<Completion>(generator)]
        }
        Handler::Responses => vec![properties::<Generation>(generator), properties::<Responses>(generator)],
        Handler::Messages | Handler::CountTokens => {
            vec![properties::<Generation>(generator), properties::<Messages>(generator)]
        }
        Handler::Tokenize => vec![properties::<Tokenize>(generator)],
        Handler::Detokenize => vec![properties::<Detokenize>(generator)],
        _ => return None,
    };
    if matches!(what, Handler::Chat | Handler::Completions | Handler::Responses | Handler::Messages) {
        let knobs: Map<String, Value> = Knobs::properties().collect();
        schemas.push(json!({"properties": knobs}));
    }
    let mut all = Map::new();
    let mut required: Vec<Value> = Vec::new();
    for schema in schemas {
        if let Some(Value::Object(more)) = schema.get("properties") {
            all.extend(more.clone());
        }
        required.extend(schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default());
    }
    if what == Handler::Messages {
        required.push(json!("max_tokens"));
    }
    Some(json!({"type": "object", "properties": all, "required": required}))
}

fn properties<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    T::json_schema(generator).to_value()
}

/// An HTML page that lists the routes.
pub(crate) fn page() -> Response<Body> {
    let rows = ROUTES.iter().map(|route| {
        let key = if route.is_open { "no" } else { "if there are keys" };
        format!("<tr><td>{}<td><code>{}</code><td>{}<td>{key}\n", route.method, route.path, route.summary)
    });
    let text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>moi: routes</title>\n\
         <style>body{{font:16px system-ui;margin:2em;max-width:60em}}td,th{{text-align:left;padding:.2em 1em .2em 0}}\
         :root{{color-scheme:light dark}}</style>\n\
         <h1>Routes</h1>\n<p>Requests and answers are OpenAI's; <a href=\"openapi.json\">openapi.json</a> describes each \
         field.</p>\n<table><tr><th>Method<th>Path<th>What it does<th>Key needed\n{}</table>\n",
        rows.collect::<String>()
    );
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}
