//! Matrix products by cuBLAS, which is loaded when it is asked for.

#![allow(unsafe_code, reason = "a library is loaded and called here; each block says why it is sound")]

use std::ffi::c_int;
use std::sync::Arc;

use cudarc::cublas::sys::{
    cublasComputeType_t as Compute, cublasGemmAlgo_t, cublasOperation_t as Operation, cudaDataType_t,
};
use cudarc::cublas::{CudaBlas, result};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

use super::device::{DeviceError, Product, Products};
use super::driver::loaded;

/// cuBLAS on a stream.
#[derive(Debug)]
pub(super) struct Library {
    blas: CudaBlas,
    stream: Arc<CudaStream>,
    compute: Compute,
}

impl Library {
    /// For these products; `None` if they are exact, and no library's.
    pub(super) fn new(stream: &Arc<CudaStream>, products: Products) -> Result<Option<Self>, DeviceError> {
        let compute = match products {
            Products::Exact => return Ok(None),
            Products::F32 => Compute::CUBLAS_COMPUTE_32F,
            Products::Tf32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            Products::Bf16 => Compute::CUBLAS_COMPUTE_32F_FAST_16BF,
        };
        loaded::products()?;
        let blas = CudaBlas::new(Arc::clone(stream)).map_err(|error| failed("open cuBLAS", &error))?;
        Ok(Some(Self { blas, stream: Arc::clone(stream), compute }))
    }

    /// One product.
    pub(super) fn multiply(
        &self,
        product: Product,
        a: &CudaSlice<u8>,
        b: &CudaSlice<u8>,
        c: &mut CudaSlice<u8>,
    ) -> Result<(), DeviceError> {
        let Product { transposed: [ta, tb], sizes: [m, n, k], distances: [lda, ldb, ldc] } = product;
        if m == 0 || n == 0 {
            return Ok(());
        }
        // Columns of each matrix as it lies, and the bytes up to the end of its last one.
        let columns = [if ta { m } else { k }, if tb { k } else { n }, n];
        let rows = [if ta { k } else { m }, if tb { n } else { k }, m];
        let bytes = |at: usize, distance: usize| {
            let before = columns[at].saturating_sub(1).saturating_mul(distance);
            before.saturating_add(rows[at]).saturating_mul(size_of::<f32>())
        };
        let fits = rows.iter().zip([lda, ldb, ldc]).all(|(rows, distance)| *rows <= distance)
            && bytes(0, lda) <= a.num_bytes()
            && bytes(1, ldb) <= b.num_bytes()
            && bytes(2, ldc) <= c.num_bytes();
        let numbers = [m, n, k, lda, ldb, ldc].map(c_int::try_from);
        let [Ok(m), Ok(n), Ok(k), Ok(lda), Ok(ldb), Ok(ldc)] = numbers else { return Err(too_large()) };
        if !fits {
            return Err(too_large());
        }
        let operation = |transposed| if transposed { Operation::CUBLAS_OP_T } else { Operation::CUBLAS_OP_N };
        let (alpha, beta) = (1.0f32, 0.0f32);
        let number = cudaDataType_t::CUDA_R_32F;
        let (a, _a) = a.device_ptr(&self.stream);
        let (b, _b) = b.device_ptr(&self.stream);
        let (c, _c) = c.device_ptr_mut(&self.stream);
        // SAFETY: every matrix ends within its memory (`fits`), factors and result are memories of their own, `alpha` and `beta` live
        // through the call, and the handle's stream is the one whose events the pointers were taken with.
        let done = unsafe {
            result::gemm_ex(
                *self.blas.handle(),
                operation(ta),
                operation(tb),
                m,
                n,
                k,
                (&raw const alpha).cast(),
                a as *const _,
                number,
                lda,
                b as *const _,
                number,
                ldb,
                (&raw const beta).cast(),
                c as *mut _,
                number,
                ldc,
                self.compute,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.map_err(|error| failed("multiply matrices", &error))
    }
}

fn failed(doing: &str, error: &result::CublasError) -> DeviceError {
    DeviceError::Driver { doing: doing.into(), message: format!("{error:?}") }
}

fn too_large() -> DeviceError {
    let message = "the matrices do not fit their memory, or what cuBLAS counts by".into();
    DeviceError::Driver { doing: "multiply matrices".into(), message }
}
