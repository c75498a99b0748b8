"""The templates of templates.py: what a chat template can use of Jinja, one thing at a time."""

CONVERSATIONS = [
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Grüße, Wörld! 日本 😀 <b>&'\"</b>"},
        {"role": "assistant", "content": "  ok\n"},
        {"role": "user", "content": "a-b-c a_b 1.5 12"},
    ],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "one\r\ntwo\rthree\x85four\u2028five\vsix\x1cseven\n"}],
]

# One expression a line, or a whole template where it has tags.
EXPRESSIONS = r"""
## Tests.
['a' is sequence, [1] is sequence, (1,) is sequence, {} is sequence, 1 is sequence, none is sequence, true is sequence]
x is sequence
x is iterable
['a' is iterable, [] is iterable, {} is iterable, 1 is iterable, none is iterable, range(3) is iterable]
['a' is mapping, [] is mapping, {} is mapping, none is mapping, messages[0] is mapping, namespace() is mapping]
[1 is number, 1.5 is number, true is number, 'a' is number, none is number]
[1 is integer, 1.0 is integer, true is integer, 1.5 is float, 1 is float, true is float, '1' is integer]
[true is boolean, false is boolean, 1 is boolean, none is boolean]
[true is true, 1 is true, false is false, 0 is false, '' is false]
['a' is string, 1 is string, ['a'] is string, none is string, messages[0].content is string]
[range is callable, 'a' is callable, raise_exception is callable, none is callable, namespace is callable]
{% macro f() %}{% endmacro %}{{ f is callable }}
[1 is sameas 1, none is sameas none, true is sameas 1, true is sameas true]
[1 is eq 1, 1 is ne 2, 1 is lt 2, 2 is le 2, 3 is gt 2, 3 is ge 3]
[1 is equalto(1), 1 is lessthan(2), 2 is greaterthan(1), 1 is eq(1.0)]
[1 is in [1, 2], 'a' is in 'abc', 'role' is in messages[0], 3 is not in [1]]
'a' is escaped
['A' is upper, 'a' is lower, 'A1' is upper, '1' is upper, 'Aa' is lower, '' is lower, 'ä' is lower]
[none is none, 0 is none, x is none, x is defined, x is undefined, messages is defined, messages.x is defined]
[3 is odd, 4 is even, 4 is divisibleby 2, 9 is divisibleby(3), -3 is odd, 0 is even]
'3' is odd
none is odd
2.5 is odd
['trim' is filter, 'nope' is filter, 'odd' is test, 'nope' is test, 'tojson' is filter]
1 is nope
1 is upper
[1, 2] is upper
not 1 is odd
1 is not odd
5 is divisibleby 0
1 is lt 'a'
'a' in 1
1 in 'abc'
none in 'abc'
'a' in none
'a' in x
x in 'abc'
x in [1]
1 in {1: 2}
[] in {1: 2}
[1] in [[1], [2]]
1.0 in [1, 2]
true in [1]
'' in 'abc'
1 is string or 'a' is string
1 is startingwith 'a'
1 is safe
1 is int
## Constants.
'\U0001F600'
'\u00e9\u65e5'
'\x41\x7a'
'\N{BULLET}'
'\101\60'
'\q\d\.'
'a\nb\tc'
'\a\b\f\v' | tojson
'\'' ~ "\"" ~ '"' ~ "'"
'\\n' ~ '\\\\'
'a\/b'
'日本 😀'
'\ud83d\ude00' | length
'\x4'
'\u12'
'\U12345678'
'\400'
'a' 'b' "c"
1_000
[0x1F, 0b101, 0o17, 0XfF, 0B1]
[1e3, 1.5e-3, 1E5, 2e+2, 1_0.5]
1__0
.5
1.
012
00
123456789012345678901234567890
1.0
100.0
1e15
1e16
1e20
1e22
1.5e300
1e-4
1e-5
0.0001
0.00001
123456789.123456789
0.1 + 0.2
1e400
-1e400
1e400 - 1e400
[1e20, 1e-7, 0.1, 1e16, -0.0]
-0.0
1e20 | string
'%s' % 1e20
1e20 ~ ''
[1e20] | join
(1e20, 'a')
{'a': 1e20}
{1e20: 1}
3.0 | int
1e20 | int
1e20 | tojson
[1e-7, 1e16, 0.1, 1.0, 100.0] | tojson
1e400 | tojson
(1e400 - 1e400) | tojson
true
True
TRUE
None
none
False
NONE
## Arithmetic.
[7 // 2, -7 // 2, 7 // -2, -7 // -2, 7.5 // 2, -7.5 // 2]
[7 % 3, -7 % 3, 7 % -3, -7 % -3, 7.5 % 2, -7.5 % 2]
[4 / 2, 1 / 3, -1 / 2, 7 / 7]
1 / 0
1 // 0
1 % 0
1.0 / 0
[2 ** 10, 2 ** -1, 2 ** 0.5, (-2) ** 3, 2 ** 2 ** 3, -2 ** 2]
0 ** -1
2 ** 63
2 ** 64
2 ** 126
2 ** 127
2 ** 128
9223372036854775807 + 1
9223372036854775807 * 9223372036854775807
18446744073709551616 * 18446744073709551616 * 2
-9223372036854775808
'ab' * 3
3 * 'ab'
'ab' * -1
'ab' * 0
'ab' * 1.5
'a' * 'b'
[1] * 3
[1, 2] * 0
(1, 2) * 2
true * 'a'
[1] + [2, 3]
(1,) + (2,)
[1] + (2,)
'a' + 'b'
'a' + 1
1 + 'a'
none + 1
1 + none
[1] + none
x + 1
1 + x
x ~ 1
x * 2
true + true
true + 1.5
-true
+true
-'a'
+1
- -1
1 - 2 - 3
2 + 3 * 4
(2 + 3) * 4
'a' - 'b'
'%s is %d' % ('a', 3)
'%s' % 'a'
'%05.1f|%x|%r' % (3.14159, 255, 'q')
'100%' % 1
1 ~ 2 ~ none ~ true
1 ~ 2 + 3
'a' ~ 1 + 2
[1] ~ {'a': 'b'}
none ~ x ~ 1.0
## Comparisons and truth.
[1 == 1.0, 1 == true, 'a' == 'a', '1' == 1, none == false, none == none, [] == [], [1] == [1.0], (1,) == [1]]
[{'a': 1} == {'a': 1.0}, {'a': 1, 'b': 2} == {'b': 2, 'a': 1}]
[1 < 2.5, 'a' < 'b', 'B' < 'a', [1, 2] < [1, 3], (1,) < (2,), true < 2]
1 < 'a'
none < 1
[1] < [none]
{} < {}
'a' > none
x < 1
x == y
x == none
x != 1
x == ''
1 < 2 < 3
1 < 3 > 2
1 == 1 == 1
[not x, not '', not [], not {}, not 0, not 0.0, not none, not 'a', not (0,), not range(0)]
x or 'd'
'' or 0 or none
1 and 'b'
'' and 'b'
not 1 == 2
1 if x
1 if x else 2
(1 if x) is defined
(1 if x) ~ 'a'
'a' if messages else 'b'
1 if 0 else 2 if 0 else 3
(1, 2) if 1 else 3
## Subscripts.
messages[0].role ~ messages[0]['role'] ~ messages[-1].role
messages[10]
messages[10].role
messages[-10]
messages['a']
messages[0][0]
messages[0].nope
messages[0].nope.nope
messages[0]['nope']['x']
nope.nope
nope['x']
nope()
nope
nope[0]
none.x
none['x']
none.x.y
1.x
(1).x
'abc'.x
'abc'[0] ~ 'abc'[-1]
'abc'[5]
'abc'['x']
'日本'[1]
[1, 2, 3][1.0]
[1, 2, 3][true]
[1, 2, 3]['0']
{'a': 1}.a
{1: 'x'}[1.0]
{true: 'x'}[1]
{'1': 'x'}[1]
{'items': 5}.items
{'items': 5}['items']
{'items': 5}.items()
{'get': 1}.get('get')
{'keys': 1, 'a': 2}.keys() | list
{'a': {'b': [1, {'c': 2}]}}.a.b[1].c
(1, 2, 3).0
[1, 2, 3].1
'abcdef'[1:3] ~ '|' ~ 'abcdef'[:2] ~ '|' ~ 'abcdef'[-2:]
'abcdef'[::-1] ~ '|' ~ 'abcdef'[4:1:-1] ~ '|' ~ 'abcdef'[::2]
'abcdef'[-100:2] ~ '|' ~ 'abcdef'[4:100] ~ '|' ~ 'abcdef'[10:]
'abcdef'[::0]
'abcdef'[-1:-4:-1]
[1, 2, 3, 4][1:] + [5]
[1, 2, 3, 4][::-1]
[1, 2, 3, 4][-2:]
[1, 2, 3, 4][3:0:-2]
(1, 2, 3)[1:]
(1, 2, 3)[::-1]
messages[1:] | length
messages[::-1][0].content
messages[1:][0].role
messages[:1] ~ ''
'abc'[none:2]
none[1:]
x[1:]
{}[1:]
range(10)[2:4] | list
range(10)[2]
'abc'['a':]
## Methods of texts.
'a b  c'.split()
'a b  c'.split(' ')
'a,b,c'.split(',', 1)
'a,b,c'.split(',', maxsplit=1)
'a b c'.split(none, 1)
'a b c'.split(maxsplit=1)
'  a b '.split(none, 0)
'abc'.split('')
''.split()
''.split(',')
'a,b,c'.rsplit(',', 1)
' a b c '.rsplit(none, 1)
'a,b,c'.rsplit(',')
'a b c'.rsplit()
'a=b=c'.partition('=')
'a=b=c'.rpartition('=')
'abc'.partition('=')
'abc'.rpartition('=')
'  x '.strip() ~ '|' ~ '  x '.lstrip() ~ '|' ~ '  x '.rstrip() ~ '|'
'xxaxx'.strip('x') ~ 'xxaxx'.lstrip('x') ~ 'xxaxx'.rstrip('x')
'abcab'.strip('ab')
'a'.strip(none)
'a'.strip('')
'a'.strip(1)
'abc'.startswith('a') ~ 'abc'.endswith('c') ~ 'abc'.startswith(('x', 'a')) ~ 'abc'.endswith(('x', 'c'))
'abc'.startswith(['a'])
'abc'.startswith('b', 1)
'abc'.startswith('b', 1, 2) ~ 'abc'.endswith('b', 0, 2)
'abc'.startswith(1)
'abc'.startswith(())
"they're bill's friends 3a-b_c ǆ".title()
'hELLO wORLD'.capitalize() ~ 'ß'.capitalize()
'Hello'.swapcase()
'Straße ΑΣ'.upper() ~ 'Straße ΑΣ'.lower()
'Straße'.casefold()
'aaa'.replace('a', 'b', 2)
'aaa'.replace('a', 'b', -1)
'aaa'.replace('a', 'b', count=1)
'aaa'.replace('', '-')
'aaa'.replace('a', 'b', 0)
'aaa'.replace('a', none)
'aaa'.replace('a')
','.join(['a', 'b'])
','.join(['a', 1])
''.join('abc')
','.join({'a': 1, 'b': 2})
','.join([])
','.join(none)
','.join(['a', none])
'{} {}'.format('a', 1)
'{0}{1}{0} {x}'.format('a', 'b', x=3)
'{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}'.format('a', 'b', 'c', 42, 3.14159, 1234567)
'{!r} {!s}'.format('a', 'b')
'{a[b]} {c.role}'.format(a={'b': 1}, c=messages[0])
'{{}} {}'.format(1)
'{}'.format([1, 'a'])
'{}'.format(none) ~ '{}'.format(true) ~ '{}'.format(1e20)
'{'.format(1)
'{} {}'.format(1)
'{x}'.format(y=1)
'42'.zfill(5) ~ '-42'.zfill(5) ~ '+1'.zfill(4) ~ 'abcdef'.zfill(2)
'a'.center(5) ~ '|' ~ 'a'.center(4, '*') ~ '|' ~ 'ab'.center(5, '-')
'a'.ljust(3) ~ '|' ~ 'a'.rjust(3, '0') ~ 'a'.ljust(3, '.')
'abcabc'.find('c') ~ 'abcabc'.find('x') ~ 'abcabc'.find('c', 3) ~ 'abcabc'.rfind('c') ~ '日本x'.find('x')
'abcabc'.find('a', 1, 3)
'abcabc'.rfind('c', 0, 4)
'abc'.index('b') ~ 'abcb'.rindex('b')
'abc'.index('x')
'aaaa'.count('aa') ~ 'abc'.count('') ~ 'abab'.count('a', 1)
'a\nb\r\nc\n'.splitlines()
'a\nb\r\nc\n'.splitlines(true)
'a\x0bb\x0cc\x1cd\x85e\u2028f'.splitlines()
'a\nb'.splitlines(keepends=true)
['12'.isdigit(), '1.5'.isdigit(), ''.isdigit(), '²'.isdigit(), '½'.isdigit(), '٣'.isdigit()]
['12'.isnumeric(), '½'.isnumeric(), '一'.isnumeric(), '½'.isdecimal(), '٣'.isdecimal(), '²'.isdecimal()]
['abc'.isalpha(), 'ab1'.isalpha(), 'ä'.isalpha(), ''.isalpha(), 'ab1'.isalnum(), 'a b'.isalnum(), '½'.isalnum()]
[' '.isspace(), ''.isspace(), '\x1c'.isspace(), 'a '.isspace(), '\u200b'.isspace()]
['A1'.isupper(), 'a1'.islower(), '1'.isupper(), 'Aa'.isupper(), 'Hello World'.istitle(), 'Hello world'.istitle()]
['abc'.isascii(), 'ä'.isascii(), ''.isascii(), 'a1'.isidentifier(), '1a'.isidentifier(), 'a\n'.isprintable()]
'a\tb'.expandtabs(4)
'TestHook'.removeprefix('Test') ~ 'a.py'.removesuffix('.py') ~ 'abc'.removeprefix('x')
'abc'.translate({97: 'x'})
'abc'.encode()
'abc'.nope()
'abc'.upper
'abc'.__class__
'abc'.__len__()
'abc'.upper(1)
'abc'.replace('a', 'b').upper().lower().strip()
'\x1ca\x1f'.strip() | tojson
'\u200ba\ufeff'.strip() | length
'a\x1cb'.split()
'ıİ'.lower() | length
'x'.join(messages[0])
messages[1].content.split()
messages[3].content.split('-') | last
## Methods of dictionaries and lists.
messages[0].get('role') ~ messages[0].get('x') ~ messages[0].get('x', 'd')
messages[0].items() | list
messages[0].keys() | list
messages[0].values() | list
messages[0].keys()
messages[0].values()
messages[0].items()
{'a': 1}.update({'b': 2})
{'a': 1}.pop('a')
{'a': 1}.setdefault('b', 1)
{'a': 1}.clear()
{'a': 1}.copy()
{'a': 1}.nope()
{'a': 1}.get()
{'a': 1}.get([])
{'a': 1}.items()[0]
{'a': 1}.keys() | first
{'a': 1}.keys() | length
'a' in {'a': 1}.keys()
{'a': 1}.items() | length
{'a': 1}.values() | sum
dict(a=1, b='x')
dict({'a': 1}, b=2)
dict([('a', 1)])
dict()
{**{'a': 1}}
{'a': 1, 'a': 2}
{[1]: 2}
{(1, 2): 3}
{none: 1, true: 2, 1.5: 3}
[1].append(2)
[3, 1].sort()
[1, 2].reverse()
[1, 2, 1].count(1)
[1, 2, 1].index(2)
[1].index(5)
[1].pop()
[1].copy()
[1].extend([2])
(1, 2, 1).count(1) ~ (1, 2).index(2)
[1].nope()
range(3).index(1)
(5).bit_length()
(1.5).is_integer()
(255).to_bytes(2, 'big')
none.x()
## Texts of values.
[1, 'a', "it's", 'say "hi"', 'both \' and "', none, true, 1.5]
['\n\t\r\\', '\x00\x1b\x7f', 'é日😀', '\u200b\u00a0\u00ad\ufeff', '\x85\u2028']
{'a': 'b', 'c': [1, {'d': none}], 1: (1, 2), 'e': ()}
(1,)
()
[]
{}
messages[1]
messages
range(3)
range(1, 10, 2)
[range(3)]
namespace(a=1)
raise_exception
namespace
{'a': x}
[x]
(x, 1)
messages | string | length
[1, [2, [3]]] | string
true | string ~ none | string
none | upper
true | upper
[1, 'a'] | upper
1.5 | string | length
x | string | length
'<b>' | e
'<b>&"\'' | escape
'<b>' | forceescape
'<b>' | safe
('<b>' | e) ~ '<i>'
('<b>' | safe) + '<i>'
'<b>' | e | e
'<b>' | e is escaped
'<b>' | e | upper
'<b>' | e | forceescape
['<b>' | e]
['<b>' | safe]
1 | e
none | e
['<'] | e
x | e
'<b>' | safe is string
('<b>' | e).replace('&lt;', '<')
('a' | e) * 2
('%s' | e) % '<'
('a,b' | e).split(',')
## tojson.
messages | tojson
messages[1] | tojson(indent=2)
{'b': 1, 'a': [1, 2, {'c': none}], 'é': '日😀'} | tojson
{'b': 1, 'a': [1, 2, {}], 'c': [], 'd': {}} | tojson(indent=2)
{'b': 1, 'a': 2} | tojson(sort_keys=true)
{'b': {'z': 1, 'y': 2}, 'a': 2} | tojson(sort_keys=true, indent=1)
{'a': [1, 2]} | tojson(separators=(',', ':'))
{'a': [1, 2]} | tojson(indent=2, separators=(',', ': '))
'é日😀\u2028\x7f\x00\x1f"\\/\b\f\n\r\t' | tojson
'é日😀' | tojson(ensure_ascii=true)
'é日😀' | tojson(ensure_ascii=false)
'<a href="x">&\'</a>' | tojson
{1: 2, none: 3, true: 4, 1.5: 6} | tojson
{(1, 2): 3} | tojson
(1, 2) | tojson
[true, false, none, 1, -1.5, 1e20, 1e-5] | tojson
x | tojson
[x] | tojson
range(3) | tojson
messages[0].items() | tojson
messages[0].items() | list | tojson
{'a': 1} | tojson(indent=0)
{'a': 1} | tojson(indent='  ')
{'a': 1} | tojson(indent=none)
{'a': 1} | tojson(2)
{'a': 1} | tojson(false)
{'a': [1]} | tojson(true)
{'a': [1]} | tojson(false, 2)
{'a': 1} | tojson(nope=1)
{'a': 1} | tojson(indent=true)
namespace(a=1) | tojson
123456789012345678901234567890 | tojson
tools | tojson
raise_exception | tojson
## Filters of text.
'foo' | center(9) ~ '|' ~ 'foo' | center
'ab' | center(width=5)
'foo bar-baz' | title
"they're (bill) [x] {y} <z> 3a_b É" | title
'hELLO wORLD' | capitalize
'foo' | upper ~ 'FOO' | lower
'aaa' | replace('a', 'b', 2)
'aaa' | replace('a', 'b', count=1)
'aaa' | replace('a', 'b', -1)
'aaa' | replace('', '-')
12321 | replace('2', 'x')
'a1b' | replace(1, 2)
'aaa' | replace('a')
'  x ' | trim ~ '|' ~ 'xxaxx' | trim('x') ~ '|' ~ 'a' | trim(none)
'xax' | trim(chars='x')
1 | trim
none | trim
' \x1ca ' | trim | tojson
'%s-%s' | format('a', 1)
'%(a)s' | format(a=1)
'%5.1f|%-5s|%05d|%x|%o|%e|%g|%c|%%' | format(3.14159, 'a', 42, 255, 8, 12345.678, 0.00001, 'z')
'%r' | format('a')
'%s %s' | format('a')
'%s' | format('a', 'b')
'%d' | format('a')
'%d' | format(3.7)
'%q' | format(1)
1 | format(2)
'a\nb\n\nc' | indent
'a\nb\n\nc' | indent(2, true)
'a\nb\n\nc' | indent(2, blank=true)
'a\nb\n\nc' | indent(width='> ', first=true)
'a\nb' | indent(width=2, first=true, blank=true)
'a\nb\n' | indent(2) | tojson
'a\r\nb\x0bc' | indent(2) | tojson
1 | indent
'hello world foo' | wordcount ~ "it's a_b -- 1.5 é" | wordcount
none | wordcount
12 | wordcount
'hello big world this is long' | wordwrap(10)
'aaaaaaaaaaaaaaa bbb' | wordwrap(6)
'aaaaaaaaaaaaaaa bbb' | wordwrap(6, false)
'a-b-c-d-e-f-g-h' | wordwrap(5)
'a-b-c-d-e-f-g-h' | wordwrap(5, break_on_hyphens=false)
'a b\n\nc  d   e' | wordwrap(3)
'hello world' | wordwrap(5, wrapstring='|')
'hello world foo bar baz' | truncate(11)
'hello world foo bar baz' | truncate(11, true)
'hello world foo bar baz' | truncate(11, false, '…')
'hello world foo bar baz' | truncate(11, leeway=0)
'hello world foo bar baz' | truncate(20)
'hello world foo bar baz' | truncate(length=9, killwords=true, end='', leeway=0)
'hello' | truncate(2)
'aaaaaaaaaaaaaaaaaaaaaaaa' | truncate(10)
'<p>a <b>b</b>\n c</p> &amp; &lt;x&gt; <!-- c -->d' | striptags
'a < b > c' | striptags
'a b/c?d=é&f' | urlencode
{'a': 1, 'b c': 'é&'} | urlencode
[('a', 1), ('b', 2)] | urlencode
12 | urlencode
{'class': 'a b', 'id': none, 'x': 1, 'y': '<"'} | xmlattr
{'a': 1} | xmlattr(false)
{'a b': 1} | xmlattr
{} | xmlattr
[1 | filesizeformat, 0 | filesizeformat, 999 | filesizeformat, 1000 | filesizeformat, 1500000 | filesizeformat]
[1024 | filesizeformat(true), 1e9 | filesizeformat, '2000' | filesizeformat, 1e27 | filesizeformat, 1.5 | filesizeformat]
'http://example.com a' | urlize
'abc' | reverse
[1, 2] | reverse | list
'abc' | length
'abc' | first ~ 'abc' | last
'abc' | list
'abc' | random | length
'a' | nope
'abc' | batch(2) | list
['a', 'b'] | join ~ [1, 2] | join('-') ~ 'abc' | join(',')
messages | join(', ', attribute='role')
messages | join(attribute='role', d='/')
[1, none, 'a', x] | join(',')
none | join
x | join
1 | join
{'a': 1, 'b': 2} | join(',')
'a b' | split
'a\nb' | lines
## Filters of numbers.
[1.5 | round, 2.5 | round, 2.675 | round(2), 1234.5 | round(-2), 1.2 | round(0, 'ceil'), 1.25 | round(1, 'floor')]
[5 | round, 5 | round(1), 15 | round(-1), -1.5 | round, 7 | round(method='ceil')]
'1' | round
1.5 | round(1, 'nope')
true | round
[-1 | abs, -1.5 | abs, true | abs]
'a' | abs
['1' | int, '1.9' | int, 'x' | int, 'x' | int(5), none | int, 3.99 | int, '0x1F' | int(0, 16), ' 42 ' | int, '1_000' | int]
['101' | int(0, 2), '0b11' | int(0, 2), 'ff' | int(base=16), 'z' | int(default=7), true | int, '-5' | int]
[[] | int, {} | int(3)]
x | int
x | float
['1.5' | float, 'x' | float, 'x' | float(2.5), none | float, 3 | float, ' 1e3 ' | float, 'inf' | float, 'nan' | float]
'1e5' | int
'1e400' | int
'' | int
[1, 2, 3] | sum
[1.5, 2] | sum
['a', 'b'] | sum
['a', 'b'] | sum(start='')
[[1], [2]] | sum(start=[])
[1, 2] | sum(start=10)
[{'a': 1}, {'a': 2}] | sum(attribute='a')
[] | sum
[1, x] | sum
[3, 1, 2] | min ~ [3, 1, 2] | max
['b', 'A'] | min ~ ['b', 'A'] | min(case_sensitive=true)
[] | min
[{'a': 2}, {'a': 1}] | min(attribute='a')
[1, 'a'] | max
## Filters of lists.
[3, 1, 2] | sort
['b', 'A', 'c'] | sort
['b', 'A', 'c'] | sort(case_sensitive=true)
[1, 3, 2] | sort(reverse=true)
[1, 3, 2] | sort(true)
messages | sort(attribute='content') | map(attribute='role') | list
messages | sort(attribute='role,content') | map(attribute='content') | list
[1, 'a'] | sort
[none, 1] | sort
'cab' | sort
{'b': 1, 'a': 2} | sort
[{'a': 1}, {}] | sort(attribute='a')
{'b': 1, 'A': 2} | dictsort
{'b': 1, 'A': 2} | dictsort(true)
{'b': 1, 'a': 2} | dictsort(by='value')
{'b': 1, 'a': 2} | dictsort(false, 'value', true)
{'b': 1} | dictsort(by='nope')
{'b': 1} | items | list
x | items | list
1 | items
[1, 2, 1, 'a', 'A'] | unique | list
['a', 'A'] | unique(true) | list
messages | unique(attribute='role') | map(attribute='content') | list | length
messages | groupby('role') | map('first') | list
{% for role, items in messages | groupby('role') %}{{ role }}={{ items | length }};{% endfor %}
{% for g in messages | groupby('role') %}{{ g.grouper }}={{ g.list | map(attribute='content') | list | length }};{% endfor %}
messages | groupby(attribute='role') | length
[{'a': 'X'}, {'a': 'x'}, {}] | groupby('a', default='z') | map('last') | list
[1, 2, 3, 4, 5] | batch(2) | list
[1, 2, 3, 4, 5] | batch(2, 'x') | list
[1, 2, 3, 4, 5] | slice(2) | list
[1, 2, 3, 4, 5] | slice(3, 'x') | list
[1] | batch(0) | list
[1] | slice(0) | list
[1, 2, 3] | select('odd') | list
[1, 2, 3] | reject('odd') | list
[0, 1, '', 'a', none] | select | list
[0, 1, '', 'a', none] | reject | list
[1, 2, 3] | select('gt', 1) | list
messages | selectattr('role', 'equalto', 'user') | list | length
messages | selectattr('role', '==', 'user') | list | length
messages | selectattr('role', 'in', ['user', 'system']) | list | length
messages | selectattr('nope') | list
messages | selectattr('nope', 'defined') | list
messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | list
[1] | select('nope') | list
[1] | select(1) | list
messages | map(attribute='role') | list
messages | map(attribute='nope', default='d') | list
messages | map(attribute='nope') | list
messages | map('length') | list
['a', 'b'] | map('upper') | join
['a', 'b'] | map('replace', 'a', 'x') | list
[[1, 2], [3]] | map('first') | list
[[1, 2], [3, 4]] | map(attribute=1) | list
[{'a': {'b': 1}}] | map(attribute='a.b') | list
[1] | map | list
[1] | map('nope') | list
['1', 'x'] | map('int', default=9) | list
[1, 2] | first ~ [1, 2] | last
[] | first
[] | last
{'a': 1} | first ~ {'a': 1} | last
[1, 2] | map('string') | first
messages | selectattr('role', 'eq', 'user') | first
messages | selectattr('role', 'eq', 'user') | last
messages | map(attribute='role') | last
messages | map(attribute='role') | length
messages | selectattr('role', 'eq', 'user')
[1, 2] | map('string')
[1, 2] | reverse
[1, 2] | batch(1)
[1, 2] | unique
messages | selectattr('role', 'eq', 'user') | tojson
(messages | selectattr('role', 'eq', 'user'))[0]
(messages | map(attribute='role'))[0]
{'a': 1} | length ~ [] | count ~ x | length
1 | length
none | length
(1, 2) | list ~ {'a': 1} | list
none | list
x | list
1 | list
x | default('d') ~ none | default('d') ~ '' | default('d', true) ~ '' | d('e')
x | default
none | default('d', boolean=true)
x | default(default_value='q')
x.y | default('d')
messages[0] | attr('role')
'abc' | attr('upper')
messages[0] | attr('items') is defined
[1, 2, 3] | pprint
{'b': 1, 'a': [1, 'x']} | pprint
'a' | pprint
[1] | random
[1, 2] | zip([3, 4]) | list
[1] | chain([2]) | list
1 | bool
x | first
none | first
1 | first
1 | last
x | map('upper') | list
none | map('upper') | list
x | sort
none | sort
x | join(',')
none | select | list
x | reverse
1 | reverse
none | reverse
{'a': 1, 'b': 2} | reverse | list
{'a': 1} | map('upper') | list
## Signs, powers and repeated lists.
--true
-x
-none
-[1]
[+5, + 5, 1 + +2, 2 * +3, +1.5, +-3, -+3, 1 - +3]
+x
+'a'
+[1]
+5 | string
{% if +1 and +true %}a{% endif %}
(-8) ** (1 / 3)
10.0 ** 400
1.5 * 2 ** 2
[1] * 2.0
2.0 * [1]
'a' * 2.0
5.real
(1).numerator
1.5.imag
{'real': 3}.real
## Digits of other scripts.
['１２' | int, '٣' | int, '-٣' | int, '１F' | int(base=16), '1²' | int, '０x1F' | int(base=16)]
['１' | float, '１.５e１' | float, '²' | float]
## Dictionaries of pairs.
dict(['ab', ['c', 2]], d=3)
dict([('a', 1), ('a', 2)])
dict({'a': 1}.items())
dict([('a', 1)] | map('list'))
dict([{'a': 1, 'b': 2}])
dict('')
dict(x)
dict('ab')
dict(none)
dict([5])
dict([('a', 1, 2)])
dict([([1], 1)])
dict(namespace(a=1))
namespace([('a', 1)]).a
[{}.fromkeys(['a', 'b']), {}.fromkeys('ab', 1), {}.fromkeys(x)]
{}.fromkeys([[1]])
{}.fromkeys(5)
{}.fromkeys()
## What is given twice.
x is string is true
x is not string is true
x is string is not true
1 is divisibleby 1 is true
dict(a=1, a=2)
dict(a=1, b=dict(a=2))
{% macro m(a, a) %}{{ a }}{% endmacro %}{{ m(1) }}
{% macro m(a, b=1, b=2) %}{{ a }}{% endmacro %}{{ m(1) }}
## Tuples without brackets, and unpacked texts.
{{ 1, 2 if x else 3 }}
{{- 1, 'b' -}}
{{ messages[0].role, messages | length }}
{{ , }}
{{ 1, 2) + (3, 4 }}
{{ (1, 2), 3 }}
{% set a, b = 'xy' %}{{ b }}{{ a }}
{% set a, b = 'xyz' %}{{ b }}{{ a }}
{% set a, b = 'xy' if x else 'zw' %}{{ b }}{{ a }}
{% set a, b = 'xy' | upper %}{{ b }}{{ a }}
{% set a, b = x %}{{ b }}{{ a }}
## More methods of texts.
'aBß ǅé'.swapcase()
'ΑΣ'.swapcase()
['a\tb\n\tcc\td'.expandtabs(), 'a\tb'.expandtabs(tabsize=0), 'a\tb'.expandtabs(-1), '\ta\r\tb'.expandtabs(3)]
'a'.expandtabs('b')
['AB'.istitle(), ''.istitle(), '1A b'.istitle(), '1A B'.istitle(), 'ǅa'.istitle(), 'They\'re'.istitle(), 'Éa'.istitle()]
['a_1'.isidentifier(), '_'.isidentifier(), ''.isidentifier(), 'a b'.isidentifier(), 'if'.isidentifier()]
'é'.isidentifier()
## Namespaces that macros assign to.
{% set ns = namespace(x=1) %}{% macro m(v) %}{% set ns.x = v %}{% endmacro %}{{ m(3) }}{{ ns.x }}
{% macro m(v) %}{% set ns.x = v %}{% endmacro %}{% set ns = namespace(x=1) %}{{ m(3) }}{{ ns.x }}
{% macro m() %}{{ caller() }}{% endmacro %}{% set ns = namespace() %}{% call m() %}{% set ns.x = 4 %}{% endcall %}{{ ns.x }}
{% macro m(v) %}{% set ns = namespace(x=v) %}{% set ns.x = ns.x + 1 %}{{ ns.x }}{% endmacro %}{{ m(3) }}
{% set ns = namespace(x=1) %}{% macro m(v) %}{% for i in [1, 2] %}{% set ns.x = v + i %}{% endfor %}{% endmacro %}{{ m(3) }}{{ ns.x }}
{% set ns = namespace(x=1) %}{% macro m(v) %}{% set ns.x %}<{{ v }}>{% endset %}{% endmacro %}{{ m(3) }}{{ ns.x }}
{% set ns = namespace(x=1) %}{% macro m(ns) %}{% set ns.x = 5 %}{% endmacro %}{{ m(ns) }}{{ ns.x }}
{% macro m() %}{% set ns.x = 5 %}{% endmacro %}{{ m() }}
## Statements.
{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}
{% for m in messages %}{{ loop.previtem.role }}<{{ m.role }}>{{ loop.nextitem.role }};{% endfor %}
{% for i in [1, 2, 3] %}{{ loop.previtem }}|{{ loop.nextitem }};{% endfor %}
{% for i in [1, 2, 3] %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}
{% for m in messages %}{{ loop.cycle('a', 'b', 'c') }}{% endfor %}
{% for m in messages %}{{ loop.cycle() }}{% endfor %}
{% for m in messages %}{{ loop.changed(m.role) }}{% endfor %}
{% for m in messages %}{{ loop.nope }}{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }};{% endfor %}
{% for m in messages if m.role == 'x' %}a{% else %}none{% endfor %}
{% for i in [] %}a{% else %}b{% endfor %}
{% for i in x %}a{% else %}b{% endfor %}
{% for i in none %}a{% else %}b{% endfor %}
{% for i in 1 %}a{% endfor %}
{% for i in 'aé😀' %}[{{ i }}]{% endfor %}
{% for k in messages[0] %}{{ k }},{% endfor %}
{% for k, v in messages[0].items() %}{{ k }}={{ v }},{% endfor %}
{% for k, v in messages[0] | items %}{{ k }}={{ v }},{% endfor %}
{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}={{ v }},{% endfor %}
{% for a, b in [(1, 2), [3, 4], 'xy'] %}{{ a }}{{ b }};{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}
{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in [1, 2] recursive %}{{ i }}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}
{% for i in [[1, [2]], 3] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}@{{ loop.depth }}{% endif %}{% endfor %}
{% for i in range(3) %}{% set x = i %}{% endfor %}{{ x }}
{% set x = 1 %}{% for i in range(3) %}{% set x = i %}{{ x }}{% endfor %}{{ x }}
{% set x = 0 %}{% for i in range(3) %}{{ x }}{% set x = x + 1 %}{% endfor %}
{% set ns = namespace(x=0) %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}
{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}
{% set ns = namespace() %}{% set ns['a'] = 1 %}{{ ns.a }}
{% set d = {} %}{% set d.a = 1 %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% set a, b = [1, 2] %}{{ a }}{{ b }}
{% set a = 1, 2 %}{{ a }}
{% set a = (1, 2) %}{{ a[0] }}
{% set a = b = 1 %}
{% set a %}x{{ 1 }}{% endset %}{{ a }}{{ a | length }}
{% set a | upper %}x{% endset %}{{ a }}
{% set a | upper | replace('X', 'y') %}x{% endset %}{{ a }}
{% if 1 %}{% set z = 1 %}{% endif %}{{ z }}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}
{% with %}{% set a = 1 %}{{ a }}{% endwith %}{{ a }}
{% with a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{% endwith %}
{% macro f(a, b='c', d=none) %}{{ a }}{{ b }}{{ d }}{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(b=3, a=4) }}{{ f() }}
{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(c=2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}
{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, 3, c=4) }}
{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}
{% macro f() %}{{ varargs | length }}{% for v in varargs %}{{ v }}{% endfor %}{% endmacro %}{{ f(*[1, 2]) }}
{% macro f() %}{% for k, v in kwargs.items() %}{{ k }}{{ v }}{% endfor %}{% endmacro %}{{ f(x=1, y=2) }}
{% macro f() %}{{ kwargs.get('x', 'd') }}{% endmacro %}{{ f(x=1) }}{{ f() }}
{{ varargs }}{{ kwargs }}
{% set kwargs = {'a': 1} %}{{ kwargs.a }}
{% macro f(x) %}[{{ caller() }}{{ x }}]{% endmacro %}{% call f(1) %}in{% endcall %}
{% macro f() %}{{ caller('a', b='c') }}{% endmacro %}{% call(x, b) f() %}{{ x }}{{ b }}{% endcall %}
{% macro f() %}{{ caller is defined }}{% endmacro %}{{ f() }}
{% macro f() %}{{ caller() }}{% endmacro %}{{ f() }}
{% macro f() %}x{% endmacro %}{% call f() %}in{% endcall %}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}
{% macro f() %}{{ y }}{% endmacro %}{% set y = 5 %}{{ f() }}
{% set y = 4 %}{% macro f() %}{{ y }}{% endmacro %}{{ f() }}
{% macro f() %}{{ messages | length }}{% endmacro %}{{ f() }}
{% for i in [1, 2] %}{% macro f() %}{{ i }}{% endmacro %}{{ f() }}{% endfor %}
{% macro f(a) %}{% set b = a %}{{ b }}{% endmacro %}{{ f(1) }}{{ b }}
{% macro f(x) %} {{ x }} {% endmacro %}{{ f('a') | trim }}{{ f('a') == ' a ' }}
{{ f() }}{% macro f() %}late{% endmacro %}
{% macro f(a={}) %}{{ a }}{% endmacro %}{{ f() }}
{% macro f(a, b=1, c) %}{% endmacro %}
{% filter upper %}a{{ 'b' }}{% endfilter %}
{% filter trim | upper %} a {% endfilter %}
{% filter replace('a', 'b') %}aa{% endfilter %}
{% autoescape true %}{{ '<' }}{% endautoescape %}
{% autoescape false %}{{ '<' }}{% endautoescape %}
{% raw %}{{ x }}{% y %}{% endraw %}
{% generation %}a{{ 1 }}{% endgeneration %}
{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %},{% endfor %}
{% block a %}x{% endblock %}
{% block a %}x{% endblock %}{{ self.a() }}
{% include 'x' %}
{% include 'x' ignore missing %}
{% import 'x' as y %}
{% extends 'x' %}
{% do 1 %}
{% nope %}
{% if %}{% endif %}
{% if 1 %}
{% endif %}
{% for i in [1] %}{% endif %}
{% break %}
{{ }}
{{ 1 2 }}
{{ a.b. }}
{{ 1 }
{# a
{# a #}b{# c {{ x }} #}d
{{ '{{' }}{{ '%}' }}{{ "}}" }}
{{- 1 -}}
{% if 1 -%} a {%- endif %}
{% if 0 %}a{% elif 1 %}b{% else %}c{% endif %}
{% if x is defined and x %}a{% else %}b{% endif %}
{% if not (messages | length > 3) %}a{% else %}b{% endif %}
{{ raise_exception('no') }}
{{ raise_exception() }}
{{ strftime_now('%Y') | length }}
{{ strftime_now('%d %b %Y') | length }}
{{ range(5) | list }}{{ range(2, 5) | list }}{{ range(5, 0, -2) | list }}
{{ range(0) | list }}{{ range(3) | length }}{{ range(1.5) }}
{{ range(1, 2, 0) | list }}
{{ range(100001) | list | length }}
{{ lipsum() | length > 1 }}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% do c.reset() %}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}
{% set j = joiner(', ') %}{% for i in [1, 2, 3] %}{{ j() }}{{ i }}{% endfor %}
{% set j = joiner() %}{{ j() }}a{{ j() }}b
{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}{{ tools }}{{ documents }}{{ add_generation_prompt }}
{{ debug() }}
{{ loop }}
{{ loop.index }}
{{ dict }}
{{ caller }}
{{ super() }}
{{ namespace().x is defined }}
{{ messages[0]['con' ~ 'tent'] }}
{{ messages.0.role }}
{{ messages | length - 1 }}
{{ messages | length > 2 and messages[0].role == 'system' }}
{{ 'a' if messages[0]['role'] == 'system' else 'b' }}
{{ ('a' if false) or 'b' }}
{{ -1 | abs }}
{{ (-1) | abs }}
{{ 2 - 1 | abs }}
{{ 'a' ~ 'b' | upper }}
{{ not 'a' in 'b' }}
{{ 1 + 2 | string }}
{{ 'a' is string and 1 is number or false }}
{{ 5 is divisibleby 2 + 3 }}
{{ 'a' is in ['a'] }}
{{ 1 in [1] == true }}
{{ [1,2,] }}{{ (1,2,) }}{{ {'a':1,} }}
{{ 1, 2 }}
{{ 'a', }}
{{ *[1] }}
{{ lambda }}
{{ [i for i in messages] }}
{{ a := 1 }}
{{ 1 & 2 }}
{{ f'a' }}
{{ `a` }}
{{ $a }}
{{ é }}
{% set é = 1 %}{{ é }}
{% set _a = 1 %}{{ _a }}
{% set true = 1 %}
{% set none = 1 %}
{% set loop = 1 %}{{ loop }}
{% set messages = messages[1:] %}{{ messages[0].role }}
{% set x = messages | first %}{{ x.role }}
{% for x in messages %}{% endfor %}{{ x }}
{% for i in [1, 2, 3] %}{% with %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endwith %}{% endfor %}
{% for i in [1, 2, 3] %}{% with a = i %}{% if a == 2 %}{% break %}{% endif %}{{ a }}{% endwith %}{% endfor %}
{% for i in [1, 2, 3] %}{% set a %}{% if i == 2 %}{% break %}{% endif %}x{% endset %}{{ a }}{% endfor %}
{% for i in [1, 2] %}{% filter upper %}{% for j in 'ab' %}{% break %}{% endfor %}a{% endfilter %}{% endfor %}
{% generation %}{% set g = 1 %}{{ g }}{% endgeneration %}{{ g }}
{% set g = messages | map(attribute='role') %}{{ g | list | length }}{{ g | list | length }}
{% set g = messages | selectattr('role', 'eq', 'nobody') %}{% if g %}yes{% else %}no{% endif %}
{% set g = messages | map(attribute='role') %}{{ g | first }}{{ g | first }}{% for r in g %}{{ r }}{{ loop.last }}{{ loop.length }}{% endfor %}
{% for r in messages | map(attribute='role') | reverse | list %}{{ r }}{% endfor %}
{% if messages | selectattr('role', 'eq', 'user') | list %}yes{% endif %}
{{ [3, 4] | map('string') | join('+') }}{{ ['a'] | map('default', 'x', true) | list }}{{ [none, ''] | map('default', 'x', boolean=true) | list }}
"""

# Whole templates: white space, line ends and what the first table cannot write.
SOURCES = [
    "a\r\nb\rc\n\rd",
    "{{ 'a\r\nb' }}|{{ 'a\rb' | length }}",
    "{% if 1 %}\r\nx\r\n{% endif %}\r\ny\r\n",
    "x\r\n  {% if 1 %}\r\n  a\r\n  {% endif %}\r\nb",
    "{# c #}\r\na{# d #}\r\r\nb",
    "{% raw %}\r\na\r\n{% endraw %}\r\nb",
    "{% set a %}\r\nx\r\n{% endset %}{{ a | tojson }}",
    "{% for m in messages %}\r\n{{ m.role }}\r\n{% endfor %}\r\n",
    "{{ 1 }}\r\n\r\n",
    "{{ 1 }}\r",
    "{{ 1 }}\n\r",
    "{{ 1\r\n+ 2 }}",
    "{%- if 1 -%}\r\n a \r\n{%- endif -%}\r\n b",
    "{{ 'a\\r\\nb' | length }}\r\n",
    "\ufeffa",
    "\ufeff{{ 1 }}",
    "\ufeff  {% if 1 %}a{% endif %}",
    "a\n",
    "a\n\n",
    "a\n\n\n",
    "\n",
    "",
    "\na",
    "{{ 1 }}\n",
    "{% if 1 %}a{% endif %}\n",
    "{% if 1 %}a{% endif %}\n\n",
    "a\x85b\u2028c\vd\fe",
    "a\x85",
    "a\u2028",
    "{% if 1 %}\x85a{% endif %}",
    "{% if 1 %}\va{% endif %}\fb",
    "a\x85  {% if 1 %}b{% endif %}",
    "a\v  {% if 1 %}b{% endif %}",
    "a\u2028\t {% if 1 %}b{% endif %}",
    "a \u00a0 {%- if 1 -%} \u3000 b{% endif %}",
    "a \x1c {%- if 1 -%} \x1f b{% endif %}",
    "a\n\u00a0 {% if 1 %}b{% endif %}",
    "a\n\u200b{% if 1 %}b{% endif %}",
    "{{\u00a01\u00a0}}",
    "{{\u30001 }}",
    "{%\u00a0if 1 %}a{% endif %}",
    "{{\x0b1 }}{{\x0c2 }}",
    "{{ 1\x1c}}",
    "  {{ 1 }}\n  {% if 1 %}\n  a\n  {% endif %}\n  b\n",
    "  {%+ if 1 %}\n  a\n  {%+ endif %}\n  b\n",
    "{% if 1 +%}\na{% endif +%}\nb",
    "a\n  {%- if 1 %}\nb\n{%- endif %}\nc",
    "a\n  {%- if 1 -%}\n  b\n  {%- endif -%}\n  c",
    "a\n  {# c #}\n  b",
    "a\n  {#- c -#}\n  b",
    "a\n  {#+ c +#}\n  b",
    "a {# c #} b\n{# d #}\n{# e #}x",
    "a\n  {{- 1 -}}\n  b",
    "a\n  {{+ 1 }}\n  b",
    "a\n  {{ 1 +}}\n  b",
    "a\n  {{- 1 +}}\n  b",
    "a  {% if 1 %}  b  {% endif %}  c",
    "\t{% if 1 %}\n\ta\n\t{% endif %}\n",
    "a\n\n{% if 1 %}\n\nb\n\n{% endif %}\n\nc",
    "{% if 1 %}{{ 'x' }}\n{% endif %}\n{% if 1 %}{{ 'y' }}\n{% endif %}",
    "a{% raw %}\n x {{ y }} {% z %}\n{% endraw %}\nb",
    "a\n {%- raw -%}\n x \n{%- endraw -%}\n b",
    "a\n  {% raw %}  b  {% endraw %}  c",
    "a\n  {%+ raw %}\nb\n  {%+ endraw %}\nc",
    "a\n  {% raw +%}\nb{% endraw +%}\nc",
    "{% raw %}{% generation %}{% endraw %}{% generation %}b{% endgeneration %}",
    "{% generation %}\n  a\n{% endgeneration %}\nb",
    "a\n{%- generation -%}\n  b\n{%- endgeneration -%}\nc",
    "{{ '{% generation %}' }}{% generation %}x{% endgeneration %}",
    "{# {% generation %} #}x",
    "{{ '{#' }}{% generation %}x{% endgeneration %}{{ '#}' }}",
    "{% if '%}' == '%}' %}a{% endif %}",
    "{{ {'a': {'b': 1}} }}",
    "{{ {'a': {'b': 1}}}}",
    "{{ 'a' }}{{ 'b' }}\n{{ 'c' }}\n",
    "a\n{% set ns = namespace(x=1) %}\n{% macro m(v) %}\n  {%- set ns.x = v -%}\n  b\n  {% set ns.x = v %}\n c\n"
    "{% endmacro %}\n{{ m(3) }}{{ ns.x }}",
    "# a\n## b\n% c\n",
    "a{{ 1 }}b{% set x = 2 %}\n{{ x }}\n\n",
    "{% set x = '\n' %}{{ x | tojson }}",
    "{{ 'a\nb' }}",
    "{{ 'a\tb' }}",
    "{{ 'a\\\nb' | tojson }}",
    "{{ 'a\\\r\nb' | tojson }}",
    "{{ 'é\\n日' | tojson }}",
    "{{ 'é\\x41日\\U0001F600' }}",
    "{{ 'C:\\\\new' }}{{ 'C:\\\\U0001F600' }}",
    "{{ '\\\\\\\\U0001F600' }}{{ '\\\\\\U0001F600' }}",
    "{{ \"\\U0001F600\" }}\\U0001F600{{ '\\U0001f600' | length }}",
    "{# \\U0001F600 ' #}{{ '\\N{LATIN SMALL LETTER A}' }}",
    ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", 2),
    ("{{ messages[0].content.splitlines() | tojson }}", 2),
    ("{{ messages[0].content | indent(2) | tojson }}", 2),
    ("{{ messages[0].content.split() | tojson }}", 2),
    ("{{ messages[0].content | trim | tojson }}", 2),
    ("{{ messages[0].content | wordcount }}", 2),
    ("{{ messages[0].content or 'empty' }}|{{ messages[0].content | default('d', true) }}", 1),
    ("{{ messages[0].content.split('x') }}{{ messages[0].content | first }}", 1),
    (
        "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        0,
    ),
    (
        "{%- set sys = messages[0].content if messages[0].role == 'system' else 'none' -%}\n{%- for m in messages[1:] %}\n{{- '[' ~ loop.index0 ~ '] ' + m.role + ': ' + (m.content | trim) + '\n' }}\n{%- endfor %}\n{{- sys }}\n",
        0,
    ),
    (
        "{% for message in messages %}\n{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n{{ raise_exception('Conversation roles must alternate') }}\n{% endif %}\n{% endfor %}\n",
        0,
    ),
]

# What moi refuses on purpose, with a part of its message; lines as in EXPRESSIONS.
PARTS = {
    # The engine's numbers end at 128 bits.
    "unable to calculate": ["2 ** 128", "18446744073709551616 * 18446744073709551616 * 2"],
    "too large, or complex": ["(-8) ** (1 / 3)"],
    "of a number is not supported": ["5.real", "(1).numerator", "1.5.imag"],
    "names no character": [r"'\ud83d\ude00' | length"],
    "by its name": [r"'\N{BULLET}'", "{# \\U0001F600 ' #}{{ '\\N{LATIN SMALL LETTER A}' }}"],
    "a comparison like": ["1 < 2 < 3", "1 < 3 > 2", "{{ 1 in [1] == true }}"],
    "cannot convert string": ["'abc'['a':]"],
    "expected closing": ["'{!r} {!s}'.format('a', 'b')"],
    "no method named": [
        "'Straße'.casefold()",
        "'ΑΣ'.swapcase()",
        "'é'.isidentifier()",
        "'abc'.translate({97: 'x'})",
        "'abc'.encode()",
        "(5).bit_length()",
        "(1.5).is_integer()",
        "(255).to_bytes(2, 'big')",
    ],
    "of such characters": [
        "['12'.isnumeric(), '½'.isnumeric(), '一'.isnumeric(), '½'.isdecimal(), '٣'.isdecimal(), '²'.isdecimal()]"
    ],
    # What Python writes is an address, or the name of a thing of its own.
    "is a method of": [
        "{'items': 5}.items",
        "'abc'.upper",
        "'abc' | attr('upper')",
        "messages[0] | attr('items') is defined",
    ],
    "has no text": [
        "raise_exception",
        "namespace",
        "{{ dict }}",
        "messages | selectattr('role', 'eq', 'user')",
        "[1, 2] | map('string')",
        "[1, 2] | reverse",
        "[1, 2] | batch(1)",
        "[1, 2] | unique",
        "x | reverse",
    ],
    "cannot convert value": ["1 | items"],
    "escaped text": [
        "('<b>' | e).replace('&lt;', '<')",
        "('%s' | e) % '<'",
        "('a,b' | e).split(',')",
    ],
    "hyphens": ["'a-b-c-d-e-f-g-h' | wordwrap(5)"],
    "filter urlize is unknown": ["'http://example.com a' | urlize"],
    "filter random is unknown": ["'abc' | random | length", "[1] | random"],
    "filter pprint is unknown": ["[1, 2, 3] | pprint", "{'b': 1, 'a': [1, 'x']} | pprint", "'a' | pprint"],
    "count cannot be 0": ["[1] | batch(0) | list"],
    "not iterable": ["{% for a, b in [(1, 2), [3, 4], 'xy'] %}{{ a }}{{ b }};{% endfor %}"],
    "inside of `": [
        "{% for i in [1, 2, 3] %}{% with %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endwith %}{% endfor %}",
        "{% for i in [1, 2, 3] %}{% with a = i %}{% if a == 2 %}{% break %}{% endif %}{{ a }}{% endwith %}{% endfor %}",
        "{% for i in [1, 2, 3] %}{% set a %}{% if i == 2 %}{% break %}{% endif %}x{% endset %}{{ a }}{% endfor %}",
    ],
    "`changed`": ["{% for m in messages %}{{ loop.changed(m.role) }}{% endfor %}"],
    "reads a name which it assigns": [
        "{% with a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{% endwith %}"
    ],
    "reads another argument": ["{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}"],
    "in a macro is not supported": [
        "{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, 3, c=4) }}",
        "{% macro f(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}",
        "{% macro f() %}{{ varargs | length }}{% for v in varargs %}{{ v }}{% endfor %}{% endmacro %}{{ f(*[1, 2]) }}",
        "{% macro f() %}{% for k, v in kwargs.items() %}{{ k }}{{ v }}{% endfor %}{% endmacro %}{{ f(x=1, y=2) }}",
        "{% macro f() %}{{ kwargs.get('x', 'd') }}{% endmacro %}{{ f(x=1) }}{{ f() }}",
    ],
    "is unknown": [
        "{{ lipsum() | length > 1 }}",
        "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}",
        "{% set j = joiner(', ') %}{% for i in [1, 2, 3] %}{{ j() }}{{ i }}{% endfor %}",
        "{% set j = joiner() %}{{ j() }}a{{ j() }}b",
    ],
    "reserved variable name": ["{% set loop = 1 %}{{ loop }}"],
    "`autoescape`": [
        "{% autoescape true %}{{ '<' }}{% endautoescape %}",
        "{% autoescape false %}{{ '<' }}{% endautoescape %}",
    ],
}
