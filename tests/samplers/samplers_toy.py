"""What the tests of the samplers share."""

SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


def ddim_gain(schedule, t, s, std):
    """k of y_s = k y_t, one DDIM step on Gaussian data of standard deviation `std`."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return (alpha_s * alpha_t * std**2 + sigma_s * sigma_t) / (alpha_t**2 * std**2 + sigma_t**2)
