//! Mutations of chat templates.

use super::{Dice, bytes};

/// Pieces of templates that are expensive, invalid or try to escape the sandbox.
const PIECES: &[&str] = &[
    "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1, 2]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ 'x' * 100000000 }}",
    "{{ ['x'] * 100000000 }}",
    "{{ ('x' * 1000000).replace('', 'y' * 1000) }}",
    "{{ ('x' * 1000000)|replace('', 'y' * 1000) }}",
    "{{ (['x'] * 1000000)|join('y' * 1000000) }}",
    "{{ ('y' * 1000000).join(['x'] * 1000000) }}",
    "{{ '{:999999999}'.format(1) }}{{ '{:.999999999f}'.format(1.5) }}",
    "{{ messages|tojson(indent=100000000) }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '%0999999999d'|format(1) }}",
    "{{ 'x'.center(1000000000) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x'.zfill(1000000000) }}",
    "{{ 'a\nb'|indent(1000000000) }}",
    "{{ 'x'|center(1000000000) }}",
    "{{ range(10**9)|list|length }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 2 ** 4096 }}",
    "{{ -9223372036854775808 // -1 }}",
    "{{ 1 // 0 }}{{ 1 % 0 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.__class__ }}{{ messages[0].__dict__ }}",
    "{{ cycler.__init__ }}{{ lipsum.__globals__ }}",
    "{% include 'chat_template' %}",
    "{% extends 'chat_template' %}",
    "{% import 'os' as os %}{{ os.popen('id').read() }}",
    "{{ debug() }}",
    "{{ messages[99999999999999999999] }}",
    "{{ messages[-1].content[::0] }}",
    "{{ strftime_now('%' * 1000) }}",
    "{{ strftime_now('%Y' * 10000000) }}",
    "{{ raise_exception('no' * 1000000) }}",
    "{{ raise_exception() }}",
    "{% generation %}",
    "{% endgeneration %}{%",
    "{{ [1,[2,[3]]]|tojson }}",
    "{{ messages|groupby('role')|list }}{{ messages|map('upper')|list }}",
    "{{ messages|sort(attribute='content')|list }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% call(x) f() %}{% endcall %}",
    "{%- if true -%}",
    "{% endif %}",
    "\u{0}",
    "\u{F0000}",
];

/// A template in which pieces are inserted, repeated or removed, and sometimes bytes changed.
pub fn mutate(dice: &mut Dice, good: &str) -> String {
    let mut text = good.to_owned();
    for _ in 0..1 + dice.below(2) {
        let at = place(dice, &text);
        match dice.below(8) {
            0 => text.insert_str(at, &"{% if x %}".repeat(1 + dice.below(3000))),
            1 => text.insert_str(at, &format!("{{{{ {}1{} }}}}", "(".repeat(9000), ")".repeat(9000))),
            2 => {
                let end = boundary(dice, &text);
                drop(text.drain(at.min(end)..at.max(end)));
            }
            _ => text.insert_str(at, PIECES[dice.below(PIECES.len())]),
        }
    }
    if dice.once_in(5) {
        let mut bytes = text.into_bytes();
        bytes::mutate(dice, &mut bytes);
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    text
}

/// A random place, usually after a tag, where a piece is parsed as template code.
fn place(dice: &mut Dice, text: &str) -> usize {
    let behind: Vec<usize> =
        text.match_indices("%}").chain(text.match_indices("}}")).map(|(at, tag)| at + tag.len()).collect();
    match behind.is_empty() || dice.once_in(8) {
        true => boundary(dice, text),
        false => *dice.pick(&behind),
    }
}

fn boundary(dice: &mut Dice, text: &str) -> usize {
    let mut at = dice.below(text.len() + 1);
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
