//! Objects (of JSON, and maps of CBOR) in which no name occurs twice. A repeated name is refused, because each reader
//! chooses which of the values counts, so two readers of one file could see different models.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use crate::file::shown;

/// The fields by name.
pub(crate) struct Unique<V>(pub(crate) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Fields<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, V>()? {
                    if fields.contains_key(&name) {
                        return Err(Error::custom(format!("`{}` stands there twice", shown(&name))));
                    }
                    fields.insert(name, value);
                }
                Ok(Unique(fields))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}
