//! Tests what templates can do, and what they cannot.

#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use crate::{Serde, Template, Value, context};

/// Renders a template with one message, with the fuel of a conversation of one message.
fn render(source: &str, content: &str) -> Result<String, String> {
    let template = Template::new(source).map_err(|error| error.to_string())?;
    let messages = Value::from(Serde(serde_json::json!([{"role": "user", "content": content}])));
    let conversation = context! {
        messages, add_generation_prompt => true, tools => (), documents => (), bos_token => "<s>",
    };
    let fuel = 205_000 + 2 * content.len() as u64;
    template.render(conversation, fuel).map_err(|error| error.to_string())
}

#[test]
fn renders_as_transformers_does() {
    let loops = "{{ bos_token }}{% for m in messages %}\n  {% if loop.index0 > 3 %}{% break %}{% endif %}\n\
                 [{{ m['role'] }}] {{ m.content.strip().split('a')[0] | trim }}\n{% endfor %}\n";
    assert_eq!(render(loops, " bca ").unwrap(), "<s>[user] bc\n");
    assert_eq!(
        render("{{ messages | tojson }}", "<b> \"ü\"").unwrap(),
        r#"[{"role": "user", "content": "<b> \"ü\""}]"#
    );
    let absent =
        "{{ tools is none }} {{ documents is none }} {{ eos_token is defined }} {{ bos_token is defined }}";
    assert_eq!(render(absent, "").unwrap(), "True True False True");
    let indented = render("{{ messages[0] | tojson(indent=2) }}", "x").unwrap();
    assert_eq!(indented, "{\n  \"role\": \"user\",\n  \"content\": \"x\"\n}");
    assert_eq!(
        render("{%- generation -%} {{ messages[0].content }} {%- endgeneration %}", "y").unwrap(),
        "y"
    );
    assert_eq!(render("{{ strftime_now('%Y') | length }}", "").unwrap(), "4");
    let comment = "{# {% raw %} #}{% generation %}a{% endgeneration %}{# {% #}b";
    assert_eq!(render(comment, "").unwrap(), "ab");
    let iterable =
        "{{ tools is iterable }} {{ messages is iterable }} {{ 'a' is iterable }} {{ 1 is iterable }}";
    assert_eq!(render(iterable, "").unwrap(), "False True True False");
    let raw = "a{% raw %}\n{% generation %} {%{% endraw %}\nb{%- raw -%}\n c {% endraw -%} \n{% raw %} d{% endraw %}";
    assert_eq!(render(raw, "").unwrap(), "a\n{% generation %} {%bc  d");
}

#[test]
fn refusals_are_errors() {
    let refused = render("{{ raise_exception('only one system message') }}", "").unwrap_err();
    assert!(refused.contains("only one system message"), "{refused}");
    assert!(render("{{ strftime_now('%!') }}", "").is_err());
    for broken in ["{% for %}", "{%}", "{%", "{%generation", "{{ x"] {
        assert!(render(broken, "").is_err(), "{broken}");
    }
    assert!(render("{{ messages | tojson(nothing=true) }}", "").is_err());
    let endless = "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}";
    assert!(render(endless, "").is_err());
}

/// Attributes that lead out of a template in Python are undefined or an error here, and there are no files or other
/// templates.
#[test]
fn nothing_leads_out_of_a_template() {
    let attributes =
        ["__class__", "__class__.__mro__", "__init__.__globals__", "__globals__", "__dict__", "__builtins__"];
    let values = [
        "messages",
        "messages[0]",
        "''",
        "1",
        "namespace",
        "range",
        "raise_exception",
        "strftime_now",
        "cycler",
        "self",
    ];
    for value in values {
        for attribute in attributes {
            for source in [
                format!("{{{{ {value}.{attribute} }}}}"),
                format!("{{{{ {value}['{attribute}'] }}}}"),
                format!("{{{{ {value}|attr('{attribute}') }}}}"),
                format!("{{{{ {value}.{attribute}() }}}}"),
                format!("{{{{ '{{0.{attribute}}}'.format({value}) }}}}"),
            ] {
                let rendered = render(&source, "x");
                let is_nothing = rendered.as_ref().map_or(true, |text| ["", "None"].contains(&text.as_str()));
                assert!(is_nothing, "{source}: {rendered:?}");
            }
        }
    }
    for source in [
        "{% include '/etc/passwd' %}",
        "{% extends '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import system %}",
        "{{ load('x') }}",
        "{{ open('/etc/passwd') }}",
        "{{ lipsum.__globals__ }}",
        "{{ get_env('HOME') }}",
    ] {
        assert!(render(source, "x").is_err(), "{source}");
    }
}

#[test]
fn what_templates_do_is_as_before() {
    for (source, expected) in [
        (
            "{{ 1 == 1 }}{{ 1 != 1 }}{{ 1 < 2 }}{{ 2 <= 1 }}{{ 1 > 2 }}{{ 2 >= 2 }}",
            "TrueFalseTrueFalseFalseTrue",
        ),
        ("{{ 'a' in 'cab' }}{{ 'x' not in ['x'] }}{{ 'role' in messages[0] }}", "TrueFalseTrue"),
        (
            "{{ messages[0]['content'] }}{{ messages[-1].content[0] }}{{ messages[0].none is defined }}",
            "abcaFalse",
        ),
        ("{{ {'a': 1, 'b': [2]} }}{{ {'a': {'b': 3}}['a']['b'] }}{{ {}|length }}", "{'a': 1, 'b': [2]}30"),
        (
            "{{ [3, 1]|sort|join(',') }}{{ 'x'|upper }}{{ messages|map(attribute='role')|list }}",
            "1,3X['user']",
        ),
        (
            "{{ 'a' is string }}{{ x is defined }}{{ 4 is divisibleby 2 }}{{ 'a' is in ['a'] }}",
            "TrueFalseTrueTrue",
        ),
        (
            "{{ [1, 2, 3]|select('odd')|list }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
            "[1, 3]1",
        ),
        ("{% filter upper %}a{% endfilter %}{{ [1]|tojson }}{{ {'a': none}.get('a', 1) }}", "A[1]None"),
        (
            "{% set ns = namespace(x=[], n=0) %}{% for i in range(3) %}{% set ns.x = ns.x + [i] %}{% endfor %}{{ ns.x }}",
            "[0, 1, 2]",
        ),
        (
            "{{ (1, 'a') }}{{ (1,)[0] }}{{ [1, 2, 3][1:] }}{{ 'abc'[::-1] }}{{ dict(a=1, b=2) }}",
            "(1, 'a')1[2, 3]cba{'a': 1, 'b': 2}",
        ),
        ("{% macro f(a, b='c') %}{{ a ~ b }}{% endmacro %}{{ f('x') }}{{ f(b='y', a='z') }}", "xczy"),
    ] {
        assert_eq!(render(source, "abc").unwrap(), expected, "{source}");
    }
    assert!(render("{{ nothing[0] }}", "").unwrap_err().contains("undefined"));
    assert!(render("{{ 1|nothing }}", "").unwrap_err().contains("filter nothing is unknown"));
    assert!(render("{{ 1 is nothing }}", "").unwrap_err().contains("test nothing is unknown"));
    let inner = render("{{ [1]|map('nothing')|list }}", "").unwrap_err();
    assert!(inner.contains("what map was told to use is unknown"), "{inner}");
    let refused = render("{% set n = 1 %}{{ n < 2 < 3 }}", "").unwrap_err();
    assert!(refused.contains("`a < b < c` is not supported"), "{refused}");
}

#[test]
fn what_holds_itself_is_refused() {
    for reading in [
        "{{ ns }}",
        "{{ ns|tojson }}",
        "{{ ns|string }}",
        "{{ ns|list }}",
        "{{ ns ~ '' }}",
        "{{ {ns: 1} }}",
        "{{ [ns, ns]|sort }}",
        "{{ [ns]|join }}",
        "{{ '%s'|format(ns) }}",
        "{{ 'a'|replace(ns, ns) }}",
        "{{ raise_exception(ns) }}",
        "{{ ns == other }}",
        "{{ ns in [other] }}",
        "{{ ns is eq(other) }}",
        "{{ ns|pprint }}",
        "{{ 'a'.join([ns]) }}",
        "{{ {'a': 1}[ns] }}",
        "{{ {'a': 1}.get(ns) }}",
        "{{ strftime_now(ns) }}",
        "{% for x in [1, 2] %}{{ loop.changed(ns) }}{% endfor %}",
        "{{ debug() }}",
    ] {
        let itself = "{% set ns = namespace() %}{% set ns.x = [ns] %}{% set other = namespace(x=[ns]) %}";
        let error = render(&format!("{itself}{reading}"), "").unwrap_err();
        let expected = match reading {
            reading if reading.contains("changed") => "`changed` is not supported",
            _ => "holds itself",
        };
        assert!(error.contains(expected), "{reading}: {error}");
    }
    // A value that holds itself again and again is refused, because dropping it takes a level of the stack for each.
    for deeper in [
        "ns.x = (ns.x, 1)",
        "ns.x = {'a': ns.x}",
        "ns.x = dict(a=ns.x)",
        "ns.x = namespace(a=ns.x)",
        "ns.x = ns.x[0:]",
        "ns.x = ns.x + [1]",
        "ns.x = ns.x|reverse",
        "ns.x = ns.x|batch(2)",
        "ns.x = ns.x * 1",
        "ns.x = [ns.x]|map('first')",
        "n = namespace() %}{% set n.x = ns.x %}{% set ns.x = n",
    ] {
        let source = format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(30000) %}}{{% set {deeper} %}}{{% endfor %}}"
        );
        let _ = render(&source, &"x".repeat(1_000_000));
    }
    let nested =
        "{% set ns = namespace(x=[]) %}{% for i in range(30000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    for reading in ["{{ ns.x }}", "{{ ns.x == [ns.x] }}", "{{ {ns.x: 1} }}"] {
        let error = render(&format!("{nested}{reading}"), &"x".repeat(100_000)).unwrap_err();
        assert!(error.contains("nested more than"), "{reading}: {error}");
    }
}

#[test]
fn little_that_stands_for_much_is_refused() {
    let doubled = "{% set ns = namespace(x=[], y=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}\
                   {% set ns.y = [ns.y, ns.y] %}{% endfor %}";
    let many = "{% set b = 'a' * 4000000 %}{% set l = range(90000)|list %}{% for i in range(9000) %}";
    for source in [
        format!("{doubled}{{{{ ns.x == ns.y }}}}"),
        format!("{doubled}{{{{ ns.x in [ns.y] }}}}"),
        format!("{doubled}{{% set d = {{ns.x: 1}} %}}"),
        format!("{doubled}{{{{ ns.x|pprint|length }}}}"),
        format!("{many}{{% set x = b[3999999] %}}{{% endfor %}}"),
        format!("{many}{{% set x = l == l %}}{{% endfor %}}"),
    ] {
        let error = render(&source, "").unwrap_err();
        assert!(error.contains("walks through more than") || error.contains("fuel"), "{source}: {error}");
    }
}

#[test]
fn long_chains_are_refused() {
    for (start, link, end) in [
        ("{{ 1", "+1", " }}"),
        ("{{ messages", ".a", " }}"),
        ("{{ messages", "[0]", " }}"),
        ("{{ 1", "|string", " }}"),
        ("{{ 1", " and 1", " }}"),
        ("{{ 1", "~1", " }}"),
        ("{{ f", "()", " }}"),
        ("{{ 1", " == 1", " }}"),
        ("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
        ("{{ ", "1 if 1 else ", "1 }}"),
    ] {
        let error = render(&format!("{start}{}{end}", link.repeat(50_000)), "").unwrap_err();
        assert!(error.contains("more than 2000") || error.contains("recursion"), "{link}: {error}");
        // Whatever is let through must compile within the stack of any thread.
        let links = 1990 / if link.contains("if") { 3 } else { 2 };
        let _ = render(&format!("{start}{}{end}", link.repeat(links)), "");
    }
    let list = format!("{{{{ [{}]|length }}}}", "'a', ".repeat(5000));
    assert_eq!(render(&list, "").unwrap(), "5000");
}

#[test]
fn little_stays_what_it_was() {
    assert!(render("{{ '-'.join(['a', 1]) }}", "a-b-c").unwrap_err().contains("item 1 is int"));
    assert_eq!(render("{{ messages[0].content.replace('-', '+', 1) }}", "a-b-c").unwrap(), "a+b-c");
    assert_eq!(
        render("{{ ['a'] * 2 }}{{ {'a': 1} }}{{ 1.5 }}{{ none }}", "a-b-c").unwrap(),
        "['a', 'a']{'a': 1}1.5None"
    );
    assert_eq!(
        render("{{ 1 + 2 }}{{ 2 * 3 }}{{ 'a' + 'b' }}{{ 'a' ~ 1 }}{{ '-' * 3 }}", "a-b-c").unwrap(),
        "36aba1---"
    );
    assert_eq!(
        render("{{ ([1] + [2])|length }}{{ 1.5 + 1 }}{{ 'a' ~ ['b'] }}", "a-b-c").unwrap(),
        "22.5a['b']"
    );
    assert!(render("{{ 1 + 'a' }}", "a-b-c").is_err() && render("{{ [1] + 1 }}", "a-b-c").is_err());
    assert_eq!(render("{{ '<b>' }}{{ 'x'|string }}{{ [1]|string }}", "a-b-c").unwrap(), "<b>x[1]");
}

#[test]
fn much_is_refused() {
    for source in [
        "{% set ns = namespace(x=['a', 'b']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=['ab']) %}{% for i in range(99) %}{% set ns.x = ns.x * 9 %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% macro f() %}{{ 'x' ~ (['y'] * 9999999) }}{% endmacro %}{{ f() }}",
        "{% include 'chat_template' %}",
        "{{ ['x'] * 100000000 }}",
        "{{ (['x'] * 100000000)|string }}",
        "{{ (['x'] * 100000000)|tojson }}",
        "{{ ''.join([''] * 100000000) }}",
        "{{ ('y' * 1000000).join(['x'] * 1000) }}",
        "{{ ('x' * 100000).replace('', 'y' * 1000) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a'.center(999999999) }}",
        "{{ 'a'|center(999999999) }}",
        "{{ 'a'|indent(999999999, true) }}",
        "{{ ('a\\n' * 100000)|indent(1000) }}",
        "{{ '1'.zfill(999999999) }}",
        "{{ ('<' * 4000000)|e }}",
        "{{ ('a ' * 100000)|wordwrap(1, wrapstring='b' * 100000) }}",
        "{{ (['x'] * 90000)|join('y' * 100000) }}",
        "{{ ('é' * 2000000)|urlencode }}",
    ] {
        let error = render(source, "a-b-c").unwrap_err();
        let parts = ["beyond", "more than", "many", "fuel", "non-existing"];
        assert!(parts.iter().any(|part| error.contains(part)), "{source}: {error}");
    }
}

#[test]
fn stripping_many_characters_is_counted() {
    assert_eq!(render("{{ 'xyaxy'.strip('yx') }}{{ 'xyaxy'|trim('yx') }}", "").unwrap(), "aa");
    assert_eq!(render("{{ 'xyaxy'.lstrip('yx') }}{{ 'xyaxy'.rstrip('yx') }}", "").unwrap(), "axyxya");
    for stripping in ["c.strip(c)", "c.lstrip(c)", "c.rstrip(c)", "c|trim(c)"] {
        let source = format!(
            "{{% set c = 'xyz' * 1300000 %}}{{% for i in range(3) %}}{{% set x = {stripping} %}}{{% endfor %}}"
        );
        let error = render(&source, "").unwrap_err();
        assert!(error.contains("walks through more than"), "{stripping}: {error}");
    }
}

#[test]
fn many_names_in_a_tag_are_looked_up_fast() {
    // Comparing each name with all names before it would take 2 * 10^10 comparisons.
    let names: Vec<String> = (0..200_000).map(|number| format!("a{number}=x{number}")).collect();
    let names = names.join(", ");
    for source in
        [format!("{{% with {names} %}}{{% endwith %}}"), format!("{{% macro f({names}) %}}{{% endmacro %}}")]
    {
        let error = render(&source, "").unwrap_err();
        assert!(error.contains("more than 2000"), "{error}");
    }
    for (source, what) in [
        ("{% with a=1, b=a %}{% endwith %}", "reads a name which it assigns"),
        ("{% macro f(a, b=a) %}{% endmacro %}", "reads another argument"),
    ] {
        let error = render(source, "").unwrap_err();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn lower_case_copies_are_counted() {
    for filter in ["unique|list", "sort", "min", "max", "groupby('a')", "sort(attribute='a,a')"] {
        let item = if filter.contains("'a") { "{'a': 'A' * 4000000}" } else { "'A' * 4000000" };
        let source = format!("{{% set l = [{item}] * 20 %}}{{% set x = l|{filter} %}}");
        let error = render(&source, "").unwrap_err();
        assert!(error.contains("fuel"), "{filter}: {error}");
    }
    let sorted = render("{{ ['b', 'A', 'B', 'a']|sort|join }}{{ ['b', 'B']|unique|join }}", "").unwrap();
    assert_eq!(sorted, "AabBb");
}

#[test]
fn tags_are_adapted_by_their_kind() {
    for (source, expected) in [
        ("a {#- b -#} c", "ac"),
        ("a\r\n{{- 1 -}}\rb", "a1b"),
        ("{%- raw -%}\n {{ x }}{% endraw -%} b", "{{ x }}b"),
        ("{% for x in [1] -%} {{ x }}{%- endfor %}", "1"),
    ] {
        assert_eq!(render(source, "").unwrap(), expected, "{source}");
    }
    for (source, what) in [("{{ 1 +}}", "ends no expression"), ("{% raw %}", "unexpected end of raw")] {
        let error = render(source, "").unwrap_err();
        assert!(error.contains(what), "{source}: {error}");
    }
}
