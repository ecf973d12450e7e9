"""Metrics: named protocols define what is compared; the functions that compute PSNR and SSIM are BasicSR's."""
