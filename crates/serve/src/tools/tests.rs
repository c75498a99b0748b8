use std::{fs, path::Path, sync::Arc};

use serde_json::Value;

use super::*;

fn function(name: &str, parameters: Value) -> Function {
    Function { name: name.to_owned(), description: None, parameters, is_strict: false }
}

/// Two functions, whose calls are in this form.
fn tools(form: CallForm) -> Tools {
    let weather = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "units": {"type": "object"},
    }, "required": ["city"]});
    Tools {
        form,
        functions: vec![function("weather", weather), function("time", json!({"type": "object"}))],
        choice: ToolChoice::Auto,
        is_parallel: true,
        tokens: Vec::new(),
    }
}

/// The text and the calls of an answer that comes in pieces of `cut` characters.
fn parsed(form: CallForm, text: &str, cut: usize) -> (String, Vec<(String, Value)>) {
    let mut calls = Calls::new(Some(Arc::new(tools(form))));
    let chars: Vec<char> = text.chars().collect();
    let mut parts: Vec<Part> =
        chars.chunks(cut).flat_map(|piece| calls.push(&piece.iter().collect::<String>())).collect();
    parts.extend(calls.finish());
    let (mut answer, mut found) = (String::new(), Vec::<(String, String)>::new());
    for part in parts {
        match part {
            Part::Text(text) => answer += &text,
            Part::Call(CallDelta { index, begins, arguments }) => {
                if let Some((id, name)) = begins {
                    assert_eq!(index, found.len(), "an index twice");
                    assert!(!id.is_empty());
                    found.push((name, String::new()));
                }
                found[index].1 += &arguments;
            }
        }
    }
    let read = |(name, text): (String, String)| {
        let arguments = serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text));
        (name, arguments)
    };
    (answer, found.into_iter().map(read).collect())
}

#[test]
fn calls_are_found_however_the_text_is_cut() {
    use CallForm::{FunctionGemma, Gemma4, Hermes, Llama, MistralArgs, MistralList, Xml};
    let city = |days: i64| ("weather".to_owned(), json!({"city": "Zürich }\"]", "days": days}));
    let time = || ("time".to_owned(), json!({}));
    let json_call = |key: &str, days: i64| {
        format!(r#"{{"name": "weather", "{key}": {{"city": "Zürich }}\"]", "days": {days}}}}}"#)
    };
    let call = |days| json_call("arguments", days);
    let plain = |text: &str| (text.to_owned(), Vec::new());
    for (form, text, expected) in [
        (Hermes, format!("<tool_call>\n{}\n</tool_call>", call(2)), (String::new(), vec![city(2)])),
        (
            Hermes,
            format!(
                "I look.\n\n<tool_call>\n{}\n</tool_call>\n<tool_call>\n{{\"name\":\"time\",\"arguments\":{{}}}}</tool_call>",
                call(3)
            ),
            ("I look.".to_owned(), vec![city(3), time()]),
        ),
        (Hermes, "a < b <tool_cal".to_owned(), plain("a < b <tool_cal")),
        (Hermes, "no calls \n".to_owned(), plain("no calls \n")),
        (
            Hermes,
            "<tool_call>\n{\"name\": \"rm\", \"arguments\": {}}\n</tool_call>".to_owned(),
            plain("<tool_call>\n{\"name\": \"rm\", \"arguments\": {}}\n</tool_call>"),
        ),
        (
            Hermes,
            "<tool_call>\n{\"name\": \"time\", \"arguments\": {\"a\": [1, \"}".to_owned(),
            (String::new(), vec![("time".to_owned(), json!("{\"a\": [1, \"}"))]),
        ),
        (Hermes, "<tool_call>\n{\"name\": \"ti".to_owned(), plain("")),
        (
            Xml,
            "Yes.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nZürich }\"]\n</parameter>\n<parameter=days>\n2\n\
             </parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=time>\n</function>\n</tool_call>"
                .to_owned(),
            ("Yes.".to_owned(), vec![city(2), time()]),
        ),
        (
            Xml,
            "<tool_call>\n<function=weather>\n<parameter=city>\n1\n</parameter> 2\n\n</parameter>\n<parameter=units>\n\
             {\"a\": [1]}\n</parameter>\n</function>\n</tool_call>"
                .to_owned(),
            (
                String::new(),
                vec![("weather".to_owned(), json!({"city": "1\n</parameter> 2\n", "units": {"a": [1]}}))],
            ),
        ),
        (
            Xml,
            "<tool_call>\n<function=weather>\n<parameter=city>\n\n</parameter>\n</function>\n</tool_call>".to_owned(),
            (String::new(), vec![("weather".to_owned(), json!({"city": ""}))]),
        ),
        (Llama, json_call("parameters", 2), (String::new(), vec![city(2)])),
        (
            Llama,
            format!("<|python_tag|>{}; {}", json_call("parameters", 2), call(4)),
            (String::new(), vec![city(2), city(4)]),
        ),
        (Llama, "{\"key\": 1} is JSON".to_owned(), plain("{\"key\": 1} is JSON")),
        (Llama, format!("It is {}", call(2)), plain(&format!("It is {}", call(2)))),
        (MistralList, format!("[TOOL_CALLS][{}, {}]", call(2), call(3)), (String::new(), vec![city(2), city(3)])),
        (
            MistralList,
            "[TOOL_CALLS] [{\"name\": \"time\", \"arguments\": {}, \"id\": \"abcdefghi\"}]".to_owned(),
            (String::new(), vec![time()]),
        ),
        (
            MistralArgs,
            "Well.[TOOL_CALLS]time[ARGS]{}[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{\"city\": \"Zürich }\\\"]\", \
             \"days\": 5}"
                .to_owned(),
            ("Well.".to_owned(), vec![time(), city(5)]),
        ),
        (
            Gemma4,
            "<|tool_call>call:weather{city:<|\"|>Zürich }\"]<|\"|>,days:7}<tool_call|><|tool_call>call:time{}<tool_call|>"
                .to_owned(),
            (String::new(), vec![city(7), time()]),
        ),
        (
            Gemma4,
            "<|tool_call>call:weather{units:{a:[1,-2.5,true,null,<|\"|>x<|\"|>],<|\"|>b<|\"|>:{}}}<tool_call|>".to_owned(),
            (
                String::new(),
                vec![("weather".to_owned(), json!({"units": {"a": [1, -2.5, true, null, "x"], "b": {}}}))],
            ),
        ),
        (Gemma4, "<|tool_call>call:weather{city:a}<tool_call|>".to_owned(), plain("<|tool_call>call:weather{city:a}<tool_call|>")),
        (
            FunctionGemma,
            "<start_function_call>call:weather{city:<escape>Zürich }\"]<escape>,days:2}<end_function_call>".to_owned(),
            (String::new(), vec![city(2)]),
        ),
    ] {
        for cut in 1..=text.chars().count() {
            assert_eq!(parsed(form, &text, cut), expected, "{form:?} {text:?} in pieces of {cut}");
        }
    }
}

#[test]
fn without_tools_all_is_text() {
    let mut calls = Calls::new(None);
    assert_eq!(calls.push("<tool_call>"), [Part::Text("<tool_call>".to_owned())]);
    assert!(calls.finish().is_empty() && !calls.has_calls());
}

/// The form of calls is found in the chat templates of the model families.
#[test]
fn templates_tell_the_form() {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../text/tests/families");
    let form =
        |name: &str| CallForm::of(&fs::read_to_string(families.join(format!("{name}.jinja"))).unwrap());
    for (name, expected) in [
        ("qwen3-next-instruct", Some(CallForm::Hermes)),
        ("qwen3-vl-instruct", Some(CallForm::Hermes)),
        ("granite-4.0", Some(CallForm::Hermes)),
        ("qwen3.5-4b", Some(CallForm::Xml)),
        ("qwen3-coder-next", Some(CallForm::Xml)),
        ("ministral-3-3b-instruct", Some(CallForm::MistralArgs)),
        ("mistral-small-3.2", Some(CallForm::MistralArgs)),
        ("gemma4-e", Some(CallForm::Gemma4)),
        ("gemma4-large", Some(CallForm::Gemma4)),
        ("glm-4.5", None),
        ("minimax-m2", None),
        ("deepseek-r1", None),
        ("gpt-oss", None),
        ("seed-oss", None),
        ("kimi-k2-instruct", None),
        ("apertus-8b", None),
    ] {
        assert_eq!(form(name), expected, "{name}");
    }
    let llama =
        "{{- '{\"name\": \"' + tool_call.name + '\", ' }}{{- '\"parameters\": ' }}<|start_header_id|>ipython";
    assert_eq!(CallForm::of(llama), Some(CallForm::Llama));
    assert_eq!(CallForm::of("{{ '[TOOL_CALLS] [' }}"), Some(CallForm::MistralList));
    assert_eq!(CallForm::of("{{ messages }}"), None);
}
