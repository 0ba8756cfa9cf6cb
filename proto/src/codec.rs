//! How messages are read and written: as everywhere with prost, but with small buffers.
//!
//! Each call and each stream has a buffer for as long as it lives, at both ends. A controller of a thousand hosts has three thousand streams, most
//! of which tell something once an hour; with tonic's 8 KiB for each that would be 24 MiB of nothing. A larger message makes its buffer larger.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::BufferSettings;
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// A buffer at first: most events and operations fit.
const FIRST: usize = 1 << 10;
/// As much is collected before it is sent. What a receiver once got in one piece, its buffers can hold for as long as the stream lives.
const COLLECTED: usize = 4 << 10;

/// Named by the generated code alone.
#[derive(Debug)]
pub(crate) struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(FIRST, COLLECTED))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(FIRST, COLLECTED))
    }
}
